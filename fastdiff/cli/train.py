"""`fastdiff train`: train a bundled model, with sample pictures and a loss curve on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import fastdiff
from fastdiff import pictures
from fastdiff.cli.console import console
from fastdiff.errors import unknown
from fastdiff.files import replacing, writable_folder
from fastdiff.train.emoji_data import load_emoji
from fastdiff.train.export import describe, export
from fastdiff.train.loop import Training
from fastdiff.train.recipes import RECIPES

SAMPLES_A_CLASS = 6
SAMPLE_EVERY = 2_000


def run(name: str, out: str | None, steps: int | None, seed: int | None, font: str | None, device: str) -> None:
    """See `fastdiff train --help`."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    recipe = RECIPES[name]
    recipe = replace(recipe, steps=steps or recipe.steps, seed=recipe.seed if seed is None else seed)
    folder = writable_folder(out or f"runs/{name}")
    with console.status("drawing the emoji"):
        data = load_emoji(recipe.size, font=font)
    training = Training(recipe, data, folder, device=device)
    console.print(
        f"{name}: {sum(p.numel() for p in training.model.parameters()):,} parameters, "
        f"{len(training.images):,} pictures and {len(training.validation_images)} held out, in [bold]{folder}[/bold]"
    )
    if training.step:
        console.print(f"going on from step {training.step:,}")

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    try:
        with Progress(*columns, console=console, speed_estimate_period=300) as bar:
            task = bar.add_task("training", total=recipe.steps, completed=training.step)

            def on_step(training: Training, loss: float) -> None:
                recent = training.losses[-50:]
                bar.update(task, completed=training.step, description=f"loss {sum(recent) / len(recent):.4f}")

            def on_validation(training: Training) -> None:
                step, loss, validation, _ = training.log[-1]
                console.print(f"step {step:,}: loss {loss:.4f}, on held-out emoji {validation:.4f}")
                plot_losses(training, folder / f"{name}-loss.png")
                if step % SAMPLE_EVERY == 0:
                    save_samples(training, data.classes, folder / f"samples-{step:06d}.png")
                    export(training, data, folder / name)

            training.run(on_step=on_step, on_validation=on_validation)
    except KeyboardInterrupt:
        console.print(f"stopped at step {training.step:,}; the same command goes on from there")
        raise
    plot_losses(training, folder / f"{name}-loss.png")
    save_samples(training, data.classes, folder / f"{name}.png")
    export(training, data, folder / name)
    console.print(f"done: [bold]{folder / name}.safetensors[/bold], and beside it the description, card and pictures")


def save_samples(training: Training, classes: tuple[str, ...], path: Path) -> None:
    """A row of samples for each class from the averaged network, always the same noise."""
    count = SAMPLES_A_CLASS * len(classes)
    labels = torch.arange(len(classes)).repeat_interleave(SAMPLES_A_CLASS).to(training.device)
    no_class = torch.full_like(labels, len(classes))
    recipe = training.recipe
    network = training.ema.module
    samples = fastdiff.sample(
        network,
        (count, recipe.network.image_channels, recipe.size, recipe.size),
        schedule=recipe.schedule,
        prediction=recipe.prediction,
        steps=20,
        guidance=2.0,
        cond={"y": labels},
        uncond={"y": no_class},
        seed=0,
    )
    pictures.save_png(path, pictures.grid(samples, SAMPLES_A_CLASS), zoom=3)


def plot_losses(training: Training, path: Path) -> None:
    """The loss curve as a picture: every step faintly, the means of the log, and the held-out loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    losses = np.asarray(training.losses)
    log = np.asarray(training.log)
    axes.plot(np.arange(1, len(losses) + 1), losses, color="0.85", linewidth=0.5, label="each batch")
    axes.plot(log[:, 0], log[:, 1], label="mean of the last 500")
    axes.plot(log[:, 0], log[:, 2], label="held-out emoji, averaged network")
    axes.set(xlabel="step", ylabel=f"loss ({training.recipe.prediction} prediction)", yscale="log")
    axes.set_title(f"{training.recipe.name}, {describe(training)['hours']:.1f} hours")
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
