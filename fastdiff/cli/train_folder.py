"""`fastdiff train folder`: a network on the user's own pictures."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from fastdiff import arguments
from fastdiff.cli.console import console, progress
from fastdiff.errors import expect
from fastdiff.files import locked, working_folder
from fastdiff.train.fitting import fit
from fastdiff.train.loop import Training
from fastdiff.train.network import get_loss
from fastdiff.train.networks import make_network, size_of
from fastdiff.train.pictures import Pictures
from fastdiff.train.process import Process
from fastdiff.train.workers import own_device, started

STEPS = 10_000
_SETTINGS = ("learning_rate", "warmup", "precision", "checkpoint_every", "validate_every")


def run(out: str | None, steps: int | None, seed: int, device: str, given: Mapping[str, Any]) -> None:
    """See `fastdiff train --help`. given: the options for `folder` that were given, by their names."""
    expect("images" in given, "--images must be given: the folder of your pictures")
    rank, count = started()
    where = arguments.device("--device", own_device(device))
    model, loss = given.get("model", "unet-32"), given.get("loss", "denoising")
    size = size_of(model)
    usual = ("edm", "edm") if loss == "edm" else ("cosine", "v")
    process = Process.of(given.get("schedule", usual[0]), given.get("prediction", usual[1]))
    get_loss(loss, process)  # refuses what does not fit before the pictures are read
    expect(not process.prediction.split, "the models here have no second half for a learned variance")
    settings = {
        "steps": steps or STEPS, "seed": seed, "batch": given.get("batch", 32), "learning_rate": 6e-4, "warmup": 100,
        "accumulate": given.get("accumulate", count), "precision": "bfloat16" if where.type == "cuda" else "float32",
        **{name: given[name] for name in _SETTINGS if name in given}, **_decays(given.get("ema", "0.999")),
    }  # fmt: skip
    with working_folder(out or "runs/folder") as folder:
        if rank == 0:
            with locked(folder):  # said before the work; the run takes the lock itself
                pass
        with console.status("reading the pictures") if rank == 0 else nullcontext():
            pictures = _read(given, size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = make_network(model, classes=len(pictures.classes))
        if rank == 0:
            skipped = f", {len(pictures.skipped):,} left out" if pictures.skipped else ""
            console.print(
                f"{model}: {sum(p.numel() for p in network.parameters()):,} parameters, {len(pictures):,} pictures of "
                f"{size} pixels{skipped}, in [bold]{folder}[/bold]"
            )
        none = {"y": len(pictures.classes)} if pictures.classes else None
        options = {"loss": loss, "schedule": process.schedule, "prediction": process.prediction, "uncond": none,
                   "classes": pictures.classes, "mirror": given.get("mirror", False), "device": where}  # fmt: skip
        _train(network, pictures, folder, options, settings, shown=rank == 0)


def _read(given: Mapping[str, Any], size: int) -> Pictures:
    try:
        return Pictures(
            given["images"], size, by_folder=given.get("classes", False),
            skip_unreadable=given.get("skip_unreadable", False),
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(str(error).replace("skip_unreadable", "--skip-unreadable")) from error


def _decays(text: str) -> dict[str, Any]:
    try:
        first, *more = (float(each) for each in text.split(","))
    except ValueError as error:
        raise ValueError(f"--ema must be numbers separated by commas, got {text!r}") from error
    return {"ema_decay": first, "more_ema_decays": tuple(more)}


def _train(
    network: torch.nn.Module, pictures: Pictures, folder: Path, options: dict[str, Any], settings: dict[str, Any], *,
    shown: bool,
) -> None:  # fmt: skip
    """The run to its end, with a bar on the console."""
    at = 0
    try:
        with progress(period=300) if shown else nullcontext() as bar:
            task = bar.add("training", total=settings["steps"]) if bar else 0

            def on_step(training: Training, loss: float) -> None:
                nonlocal at
                at = training.step
                recent = training.losses[-50:]
                assert bar is not None
                bar.update(task, completed=at, description=f"loss {sum(recent) / len(recent):.4f}")

            fit(network, pictures, folder, on_step=on_step, **options, **settings)
    except KeyboardInterrupt:
        if shown and at:
            console.print(f"stopped at step {at:,}; the same command goes on from there")
        raise
    if shown:
        console.print(f"written: [bold]{folder}[/bold], for `fastdiff sample --model {folder}`")
