"""From a run to the files that ship: weights, description and the facts of the model card."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from fastdiff.files import replacing
from fastdiff.models.bundled import save_files
from fastdiff.train.emoji_data import HELD_OUT_EVERY, EmojiData
from fastdiff.train.loop import Training


def describe(training: Training) -> dict[str, Any]:
    """How the run went so far."""
    recipe = training.recipe
    loss, validation = (training.log[-1][1], training.log[-1][2]) if training.log else (None, None)
    return {
        "data": "Noto Color Emoji (SIL Open Font License 1.1), groups of Unicode's emoji-test.txt",
        "pictures": len(training.images),
        "held_out": len(training.validation_images),
        "data_sha256": training.fingerprint,
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "steps": training.step,
        "hours": round(training.seconds / 3600, 3),
        "loss": loss,
        "validation_loss": validation,
        "recipe": {key: value for key, value in asdict(recipe).items() if key not in ("network", "name", "size")},
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def export(training: Training, data: EmojiData, path: Path) -> None:
    """Write path.safetensors, path.json and the model card path.md from the averaged network."""
    recipe = training.recipe
    about: Mapping[str, Any] = {
        "name": recipe.name,
        "shape": [recipe.network.image_channels, recipe.size, recipe.size],
        "schedule": recipe.schedule,
        "prediction": recipe.prediction,
        "classes": list(data.classes),
        "network": asdict(recipe.network),
        "training": describe(training),
    }
    save_files(path, about, training.ema.module.state_dict())
    with replacing(path.with_suffix(".md")) as temporary:
        temporary.write_text(model_card(about), encoding="utf-8")


def model_card(about: Mapping[str, Any]) -> str:
    """The model card of a description, as Markdown."""
    import jinja2  # not needed to import fastdiff

    template = resources.files("fastdiff.train").joinpath("card.md.j2").read_text(encoding="utf-8")
    resolutions = [about["shape"][-1] >> level for level in range(len(about["network"]["channels"]))]
    page = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(template)
    return page.render(
        about=about,
        training=about["training"],
        resolutions=resolutions,
        attention=[resolutions[level] for level in about["network"]["attention_levels"]],
        held_out_every=HELD_OUT_EVERY,
    )
