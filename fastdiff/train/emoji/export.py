"""From a run to the files that ship: weights, description and the facts of the model card."""

from __future__ import annotations

import copy
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdiff.files import replacing
from fastdiff.models.bundled import own, save_files
from fastdiff.models.bundled.controlled import HINT, EdgeLatentDiffusion
from fastdiff.models.bundled.eight_bits import rounded
from fastdiff.models.bundled.emoji_prompts import EMOJI_PROMPTS
from fastdiff.models.info import ImageCondition
from fastdiff.train.emoji.controlling import EdgeControl
from fastdiff.train.emoji.data import HELD_OUT_EVERY
from fastdiff.train.emoji.latents import PromptObjective
from fastdiff.train.emoji.objective import EmojiObjective
from fastdiff.train.emoji.recipes import AutoencoderRecipe, ClassRecipe, Diffusion, LatentRecipe, Recipe, Student
from fastdiff.train.emoji.upsampling import Upsampling
from fastdiff.train.loop import Training

EmojiTraining = Training[EmojiObjective]
_SAID_ELSEWHERE = ("network", "autoencoder", "name", "size")


def describe(training: EmojiTraining) -> dict[str, Any]:
    """How the run went so far."""
    recipe, objective = training.recipe, training.objective
    loss, validation = (training.log[-1][1], training.log[-1][2]) if training.log else (None, None)
    return {
        "data": "Noto Color Emoji (SIL Open Font License 1.1), groups of Unicode's emoji-test.txt",
        "pictures": len(objective.images),
        "held_out": 0 if isinstance(objective, PromptObjective) else len(objective.validation_images),
        "data_sha256": objective.fingerprint,
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "steps": training.step,
        "hours": round(training.seconds / 3600, 3),
        "loss": loss,
        "validation_loss": validation,
        "recipe": {key: value for key, value in asdict(recipe).items() if key not in _SAID_ELSEWHERE},
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def about(
    training: EmojiTraining, autoencoder: Mapping[str, Any] | None = None, comparison: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The description of a diffusion model. autoencoder: how the run of its autoencoder went, for one on latents.
    comparison: of a student with its teacher, see `EmojiObjective.comparison`."""
    recipe, objective = training.recipe, training.objective
    assert isinstance(recipe, Diffusion)
    description: dict[str, Any] = {
        "name": recipe.name,
        "schedule": recipe.schedule,
        "prediction": recipe.prediction,
        "classes": list(objective.data.classes) if isinstance(recipe, (Recipe, ClassRecipe)) else [],
        "training": {**describe(training), **({"autoencoder": dict(autoencoder)} if autoencoder else {})},
    }
    if isinstance(recipe, Student):
        description["sampling"] = asdict(recipe.sampling)
        description["training"]["comparison"] = list(comparison)
        description["training"]["recipe"] |= {"teacher": recipe.original, "stages": recipe.stages}
    network: Any = shipped(training)
    if isinstance(objective, Upsampling):
        description |= _upsampler(objective)
        ours, bicubic = objective.psnr(network)
        description["training"] |= {"psnr": ours, "psnr_bicubic": bicubic}
    elif isinstance(objective, EdgeControl):
        description |= _control(objective, network)
        description["training"] |= {
            "own_parameters": sum(p.numel() for p in network.net.parameters()),
            "agreement": objective.agreement(network),
            "agreement_without": objective.agreement(network, controlled=False),
        }
    elif isinstance(recipe, LatentRecipe):
        description |= {"shape": list(recipe.latent_shape), "kind": "dit" if isinstance(recipe, ClassRecipe) else "ldm"}
        parts: dict[str, Any] = {"autoencoder": recipe.autoencoder.network, "unet": network.unet.config}
        if isinstance(objective, PromptObjective):
            parts["text"] = network.text.config
            description["words"] = " ".join(objective.tokenizer.words)
        configs = {name: asdict(config) for name, config in parts.items()}
        description["network"] = {**configs, "scale_factor": network.scale_factor}
    else:
        assert isinstance(recipe, Recipe)
        description["shape"] = [recipe.network.image_channels, recipe.size, recipe.size]
        description["network"] = asdict(recipe.network)
    return description


def _upsampler(objective: Upsampling) -> dict[str, Any]:
    """What only an upsampler's description has."""
    recipe, config = objective.recipe, objective.recipe.network
    small = (config.image_channels, recipe.small_size, recipe.small_size)
    return {
        "kind": "upsampler",
        "shape": [config.image_channels, recipe.size, recipe.size],
        "image": asdict(ImageCondition("image", "the small picture", small, low=-1, needed=True)),
        "network": asdict(config),
    }


def _control(objective: EdgeControl, network: EdgeLatentDiffusion) -> dict[str, Any]:
    """What only a ControlNet's description has."""
    shape = (1, objective.recipe.size, objective.recipe.size)
    return {
        "kind": "control",
        "shape": list(objective.latents.shape[2:]),
        "base": {"name": objective.recipe.base, "sha256": objective.base.info.sha256},
        "image": asdict(ImageCondition(HINT, "edges, 1 on an edge", shape, low=0, needed=False)),
        "network": asdict(network.net.config),
    }


def shipped(training: EmojiTraining) -> nn.Module:
    """A copy of the averaged network with its weights as they ship: what a card's pictures and figures are of."""
    network = copy.deepcopy(training.ema.module)
    rounded(own(network))
    return network


def export(
    training: EmojiTraining,
    path: Path,
    *,
    autoencoder: Mapping[str, Any] | None = None,
    comparison: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write path.safetensors, path.json and the model card path.md from the averaged network.

    An autoencoder's run has none of these: it ships inside the models on its latents, whose `autoencoder` it describes.
    """
    if isinstance(training.recipe, AutoencoderRecipe):
        return
    description = about(training, autoencoder, comparison)
    save_files(path, description, own(training.ema.module).state_dict())
    with replacing(path.with_suffix(".md")) as temporary:
        temporary.write_text(model_card(description), encoding="utf-8")


def model_card(about: Mapping[str, Any]) -> str:
    """The model card of a description, as Markdown."""
    import jinja2  # not needed to import fastdiff

    loader = jinja2.FileSystemLoader(str(resources.files("fastdiff.train.emoji")))
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    facts: dict[str, Any] = {"about": about, "training": about["training"], "held_out_every": HELD_OUT_EVERY}
    if "sampling" in about:
        sampling = about["sampling"]
        facts["shown_steps"] = sorted([sampling["steps"], *sampling["other_steps"]], reverse=True)
        facts["interval"] = _interval
        return environment.get_template("card_student.md.j2").render(facts)
    kind = about.get("kind", "unet")
    if kind in ("upsampler", "control"):
        return environment.get_template(f"card_{kind}.md.j2").render(facts)
    if kind != "unet":
        unet = about["network"]["unet"]
        facts["prompts"] = EMOJI_PROMPTS
        facts["channels"] = [unet["model_channels"] * mult for mult in unet.get("channel_mult", ())]  # a DiT has none
        return environment.get_template("card_latent.md.j2").render(facts)
    resolutions = [about["shape"][-1] >> level for level in range(len(about["network"]["channels"]))]
    facts["resolutions"] = resolutions
    facts["attention"] = [resolutions[level] for level in about["network"]["attention_levels"]]
    return environment.get_template("card.md.j2").render(facts)


def _interval(estimate: Mapping[str, float], digits: int) -> str:
    value, low, high = (f"{estimate[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
