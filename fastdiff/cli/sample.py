"""`fastdiff sample`: pictures from a bundled model into one PNG."""

from __future__ import annotations

import time
from pathlib import Path

import torch

import fastdiff
from fastdiff import pictures
from fastdiff.cli.console import console, print_json, progress
from fastdiff.errors import expect
from fastdiff.files import writable_folder
from fastdiff.models.bundled import to_pictures
from fastdiff.models.info import ModelInfo, PromptInfo
from fastdiff.process.grids import make_grid
from fastdiff.solvers import get_solver


def run(
    model_name: str,
    class_name: str | None,
    prompt: str | None,
    count: int,
    solver_name: str,
    steps: int,
    grid: str | None,
    guidance: float,
    seed: int,
    batch: int,
    out: str,
    zoom: int,
    as_json: bool,
) -> None:
    """See `fastdiff sample --help`. After Ctrl-C the file holds the batches that were finished."""
    path = Path(out)
    expect(path.suffix.lower() == ".png", f"--out must end in .png, got {out!r}")
    expect(not path.is_dir(), f"--out names a folder, expected a file: {out!r}")
    solver = get_solver(solver_name)
    cfg = fastdiff.CFG(guidance)
    model = fastdiff.load(model_name)
    make_grid(grid or solver.grid, model.info.schedule, steps)  # refuse bad steps before the progress bar
    prompted = isinstance(model.info, PromptInfo)
    name = _condition(model.info, class_name, prompt)
    cond = model.info.condition(name, count)
    writable_folder(path.parent)

    finished: list[torch.Tensor] = []
    started = time.perf_counter()
    try:
        with progress() as bar:
            task = bar.add(
                f"{solver.name}, {steps} steps", total=None if solver.adaptive else steps * -(-count // batch)
            )
            for first in range(0, count, batch):
                size = min(batch, count - first)
                finished.append(
                    fastdiff.sample(
                        model,
                        (size, *model.info.shape),
                        solver=solver,
                        steps=steps,
                        grid=grid,
                        guidance=cfg if name is not None else None,
                        cond={key: value[first : first + size] for key, value in cond.items()},
                        uncond=model.info.condition(None, size),
                        seed=seed,
                        first_sample=first,
                        callback=lambda *_: bar.advance(task),
                    )
                )
    finally:
        if finished:
            samples = torch.cat([to_pictures(model, part) for part in finished])
            columns = min(len(samples), max(4, round(len(samples) ** 0.5)))
            pictures.save_png(path, pictures.grid(samples, columns), zoom=zoom)
            console.print(f"{len(samples)} picture{'s' * (len(samples) != 1)} in [bold]{path}[/bold]")
    if as_json:
        print_json(
            {
                "file": str(path),
                "model": model_name,
                "class": None if prompted else name,
                "prompt": name if prompted else None,
                "count": count,
                "solver": solver.name,
                "steps": steps,
                "guidance": guidance,
                "seed": seed,
                "seconds": round(time.perf_counter() - started, 3),
            }
        )


def _condition(info: ModelInfo, class_name: str | None, prompt: str | None) -> str | None:
    """What the model is conditioned on: the class or the prompt, whichever it takes; None for neither."""
    expect(class_name is None or prompt is None, "give --class or --prompt, not both")
    if isinstance(info, PromptInfo):
        expect(class_name in (None, "none"), f"{info.name} has no classes, give --prompt in place of --class")
        return prompt
    expect(prompt is None, f"{info.name} takes no prompts, give --class: {', '.join(info.classes)}")
    return None if class_name == "none" else class_name
