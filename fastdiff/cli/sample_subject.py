"""`fastdiff sample --model FOLDER` and `--model module:function`: pictures of a model that is not bundled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastdiff
from fastdiff import pictures
from fastdiff.bench.timing import timed
from fastdiff.cli.console import console, print_json, progress
from fastdiff.errors import expect
from fastdiff.files import writable_folder
from fastdiff.process.grids import make_grid
from fastdiff.profiling import Subject, get_subject
from fastdiff.profiling.diffusers_folder import load_folder
from fastdiff.solvers import Solver


def is_subject(name: str) -> bool:
    """Whether a name is a folder or an entry point."""
    return ":" in name or Path(name).is_dir()


def run(
    name: str, prompt: str | None, count: int, solver: Solver, steps: int, grid: str | None, guidance: float | None,
    seed: int, batch: int, path: Path, zoom: int, as_json: bool, device: torch.device | None, dtype: torch.dtype,
) -> None:  # fmt: skip
    """See `fastdiff sample --help`; device: None for where an entry point makes its model. After Ctrl-C the file
    holds the batches that were finished."""
    if prompt is None:
        subject = get_subject(name, device=device)
    else:
        expect(Path(name).is_dir(), f"--prompt is for bundled models and diffusers folders; {name} has its conditions")
        subject = load_folder(Path(name), (prompt,), device=device)
    subject.require_pictures()
    network, device = subject.in_dtype(dtype), subject.device
    scale = subject.guidance if guidance is None else guidance
    guided = scale != 1
    expect(
        not guided or subject.conditions_of(0, 1)[1] is not None,
        f"--guidance {scale:g} needs a model with a condition to leave out; give --guidance 1",
    )
    make_grid(grid or subject.schedule.grid or solver.grid, subject.schedule, steps)  # type: ignore[union-attr,arg-type]
    writable_folder(path.parent)
    finished: list[torch.Tensor] = []
    try:
        with timed(device) as elapsed, progress() as bar:
            task = bar.add(
                f"{solver.name}, {steps} step{'s' * (steps != 1)}",
                None if solver.adaptive else steps * -(-count // batch),
            )
            # with a callback a GPU could not replay the loop as one graph
            on_step = None if device.type == "cuda" else lambda *_: bar.advance(task)
            for first in range(0, count, batch):
                size = min(batch, count - first)
                finished.append(
                    _draw(subject, network, dtype, first, size, guided, on_step, solver=solver, steps=steps,
                          grid=grid, guidance=fastdiff.CFG(scale) if guided else None, seed=seed)
                )  # fmt: skip
                if on_step is None:
                    bar.advance(task, steps)
    finally:
        if finished:
            samples = torch.cat([subject.pictures(part.float()) for part in finished])
            columns = min(len(samples), max(4, round(len(samples) ** 0.5)))
            pictures.save_png(path, pictures.grid(samples, columns), zoom=zoom)
            console.print(f"{len(samples)} picture{'s' * (len(samples) != 1)} in [bold]{path}[/bold]")
    if as_json:
        print_json(
            {
                "file": str(path), "model": name, "prompt": prompt, "count": count, "solver": solver.name,
                "steps": steps, "guidance": scale, "seed": seed, "device": str(device),
                "dtype": str(dtype).removeprefix("torch."), "seconds": round(elapsed.seconds, 3),
            }
        )  # fmt: skip


def _draw(
    subject: Subject, network: Callable[..., Any], dtype: torch.dtype, first: int, size: int, guided: bool, callback,
    **options,
) -> torch.Tensor:  # fmt: skip
    """Samples first to first + size - 1."""
    cond, uncond = subject.conditions_of(first, size, None if dtype == torch.float32 else dtype)  # float32: as it is
    return fastdiff.sample(
        network, (size, *subject.shape), schedule=subject.schedule, prediction=subject.prediction, cond=cond,
        uncond=uncond if guided else None, first_sample=first, callback=callback, **options,
    )  # fmt: skip
