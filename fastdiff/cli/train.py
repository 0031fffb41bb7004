"""`fastdiff train`: train a bundled model, with sample pictures and a loss curve on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastdiff
from fastdiff import pictures
from fastdiff.cli.console import console, progress
from fastdiff.errors import expect, unknown
from fastdiff.files import locked, working_folder, writable_folder
from fastdiff.models.autoencoder import AutoencoderKL
from fastdiff.models.bundled.conditioned import PromptLatentDiffusion
from fastdiff.train.emoji.autoencoding import Autoencoding
from fastdiff.train.emoji.data import EmojiData, load_emoji
from fastdiff.train.emoji.export import EmojiTraining, describe, export, shipped
from fastdiff.train.emoji.objective import EmojiObjective
from fastdiff.train.emoji.objectives import make_objective
from fastdiff.train.emoji.recipes import RECIPES, AutoencoderRecipe, ControlRecipe, LatentRecipe, Student
from fastdiff.train.loop import Training
from fastdiff.train.results import plot_losses

SAMPLE_EVERY = 2_000
MOST_PIXELS = 1_200  # of a row of pictures in a file


def run(
    name: str,
    out: str | None,
    steps: int | None,
    seed: int | None,
    font: str | None,
    device: str,
    only_export: bool = False,
) -> None:
    """See `fastdiff train --help`."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    recipe = RECIPES[name]
    recipe = replace(recipe, steps=steps or recipe.steps, seed=recipe.seed if seed is None else seed)
    _usable(device)
    if only_export:
        folder = Path(out or f"runs/{name}")
        expect((folder / "checkpoint.pt").is_file(), f"there is nothing to export in {folder}: it holds no run")
        _run(recipe, folder, font, device, only_export)
        return
    with working_folder(out or f"runs/{name}") as folder:
        with locked(folder):  # said before the work; the run takes the lock itself
            pass
        _run(recipe, folder, font, device, only_export)


def _run(recipe: Any, folder: Path, font: str | None, device: str, only_export: bool) -> None:
    with console.status("drawing the emoji"):
        data = load_emoji(recipe.size, font=font)
    objective, facts = _objective(recipe, data, folder, device)
    if only_export:
        training = Training(objective, folder)
        expect(bool(training.log), f"there is nothing to export in {folder}: the run there has no log yet")
        write_results(training, facts)
    else:
        train(objective, folder, facts)


def _objective(recipe: Any, data: EmojiData, folder: Path, device: str) -> tuple[EmojiObjective, dict[str, Any] | None]:
    """The objective, and how the run of its autoencoder went; what it needs of other runs is beside `folder`."""
    autoencoder, facts, teacher = None, None, None
    if isinstance(recipe, Student):
        facts = fastdiff.load(recipe.original).info.card.get("autoencoder")
        if isinstance(recipe.teacher, Student):
            teacher = trained_teacher(recipe.teacher, data, folder.parent / recipe.teacher.name, device)
    elif isinstance(recipe, LatentRecipe):
        beside = folder.parent / recipe.autoencoder.name
        autoencoder, facts = trained_autoencoder(recipe.autoencoder, data, beside, device)
    base = fastdiff.load(recipe.base) if isinstance(recipe, ControlRecipe) else None
    assert base is None or isinstance(base, PromptLatentDiffusion)
    return make_objective(recipe, data, autoencoder, base=base, teacher=teacher, device=device), facts


def _usable(device: str) -> None:
    """Raises ValueError for a device that is none, or that is not here."""
    try:
        torch.empty(1, device=device).fill_(0)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    expect(torch.device(device).type != "meta", "--device 'meta' holds no numbers to train")


def trained_autoencoder(
    recipe: AutoencoderRecipe, data: EmojiData, folder: Path, device: str
) -> tuple[AutoencoderKL, dict[str, Any]]:
    """The averaged autoencoder of the run in `folder`, which is begun or finished first if need be, and how the run
    went."""
    objective = Autoencoding(recipe, data, device=device)
    training: EmojiTraining = Training(objective, writable_folder(folder))
    if training.step < recipe.steps:
        training = train(objective, folder)
    else:
        console.print(f"autoencoder of [bold]{folder}[/bold], {objective.remarks(training.ema.module)}")
    network = shipped(training)
    assert isinstance(network, AutoencoderKL)
    return network, {**describe(training), "psnr": objective.psnr(network)}


def trained_teacher(recipe: Student, data: EmojiData, folder: Path, device: str) -> nn.Module:
    """The averaged network of the run in `folder`, which is begun or finished first if need be."""
    objective, facts = _objective(recipe, data, folder, device)
    training: EmojiTraining = Training(objective, writable_folder(folder))
    if training.step < recipe.steps:
        training = train(objective, folder, facts, comparing=False)
    else:
        console.print(f"teacher of [bold]{folder}[/bold], {recipe.student_steps} steps")
    return training.ema.module


def train(
    objective: EmojiObjective, folder: Path, autoencoder: Mapping[str, Any] | None = None, *, comparing: bool = True
) -> EmojiTraining:
    """A run to its end, with its progress on the console and its pictures and weights in `folder`. autoencoder: how the
    run of its autoencoder went, for the model card. comparing: whether a student is held to its teacher in the end."""
    training, recipe = Training(objective, folder), objective.recipe
    name = recipe.name
    console.print(
        f"{name}: {sum(p.numel() for p in training.model.parameters()):,} parameters, {len(objective.images):,} "
        f"pictures and {len(objective.validation_images)} held out, in [bold]{folder}[/bold]"
    )
    if training.step:
        console.print(f"going on from step {training.step:,}")

    try:
        with progress(period=300) as bar:
            task = bar.add("training", total=recipe.steps, completed=training.step)

            def on_step(training: EmojiTraining, loss: float) -> None:
                recent = training.losses[-50:]
                bar.update(task, completed=training.step, description=f"loss {sum(recent) / len(recent):.4f}")

            def on_validation(training: EmojiTraining) -> None:
                step, loss, validation, seconds = training.log[-1]
                remarks = objective.remarks(training.ema.module)
                console.print(
                    f"step {step:,}: loss {loss:.4f}, on {objective.validated_on} {validation:.4f}, "
                    f"{seconds / step:.2f} s a step" + (f", {remarks}" if remarks else "")
                )
                plot_losses(training, folder / f"{name}-loss.png")
                if step % SAMPLE_EVERY == 0:
                    save_pictures(training, folder / f"samples-{step:06d}.png")
                    export(training, folder / name, autoencoder=autoencoder)

            training.run(on_step=on_step, on_validation=on_validation)
    except KeyboardInterrupt:
        console.print(f"stopped at step {training.step:,}; the same command goes on from there")
        raise
    write_results(training, autoencoder, comparing=comparing)
    return training


def write_results(training: EmojiTraining, autoencoder: Mapping[str, Any] | None, *, comparing: bool = True) -> None:
    """Loss curve, pictures, weights and model card of a run in its folder."""
    path = training.folder / training.recipe.name
    plot_losses(training, path.with_name(f"{path.name}-loss.png"))
    save_pictures(training, path.with_suffix(".png"))
    comparison = training.objective.comparison(shipped(training)) if comparing else []
    export(training, path, autoencoder=autoencoder, comparison=comparison)
    console.print(f"written: [bold]{path}[/bold] .safetensors, .json, .md, and pictures")


def save_pictures(training: EmojiTraining, path: Path) -> None:
    """What the averaged network makes."""
    samples, columns = training.objective.pictures(shipped(training))
    size = samples.shape[-1]
    zoom = min(3 if size < 64 else 2, max(1, MOST_PIXELS // (columns * size)))
    pictures.save_png(path, pictures.grid(samples, columns), zoom=zoom)
