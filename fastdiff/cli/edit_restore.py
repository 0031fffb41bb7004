"""`fastdiff edit restore`: the picture of which something was measured, by DPS."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastdiff import editing
from fastdiff.bench.timing import timed
from fastdiff.cli.console import progress
from fastdiff.cli.drawing import Run
from fastdiff.cli.edit_files import Asked, Outputs, Picture, read, read_mask
from fastdiff.cli.picture_model import PictureModel
from fastdiff.editing.operators import AveragePooling, Blurring, Masking, gaussian_kernel
from fastdiff.errors import expect, unknown
from fastdiff.solvers import get_solver

TASKS = {"superres": "--factor", "deblur": "--blur", "inpaint": "--mask"}  # and the option that each has
FACTOR, BLUR = 4, 1.5


def run(
    asked: Asked,
    outputs: Outputs,
    image: str,
    task: str,
    factor: int | None,
    blur: float | None,
    mask: str | None,
    hole: str,
    scale: float,
    solver_name: str,
    steps: int,
    grid: str | None,
) -> None:
    """See `fastdiff edit restore --help`."""
    if task not in TASKS:
        raise unknown("--task", task, TASKS)
    for own, option in TASKS.items():
        value = {"--factor": factor, "--blur": blur, "--mask": mask}[option]
        expect(value is None or own == task, f"{option} is for --task {own}, not {task}")
    expect(task != "inpaint" or mask is not None, "--task inpaint needs --mask")
    expect(scale > 0 and scale < float("inf"), f"--scale must be positive and finite, got {scale:g}")
    solver = get_solver(solver_name)
    model = asked.opened(outputs.count)
    Run(model, solver, steps, grid, asked.seed)  # refuses a bad grid
    picture, before, kept, y, operator = _measured(model, image, task, factor, blur, mask, hole)
    y = (y.to(model.device) if model.latent else model.samples(y)).expand(outputs.count, -1, -1, -1)
    seen = lambda x: operator(model.decode(x).float())  # noqa: E731
    like = torch.zeros(outputs.count, *model.shape, device=model.device, dtype=model.dtype)
    with outputs.folders(picture):
        with timed(model.device) as elapsed, progress() as bar:
            work = bar.add(f"dps, {solver.name}, {steps} step{'s' * (steps != 1)}", steps)
            found = editing.dps(
                model.network, y, seen, like, scale=scale, solver=solver, steps=steps, grid=grid, seed=asked.seed,
                callback=lambda *_: bar.advance(work), **model.given(0, outputs.count),
            )  # fmt: skip
        after = model.pictures(found).cpu()
        if kept is not None:
            after = torch.where(kept, before, after)
        facts = {"image": image, "task": task, "scale": scale, "solver": solver.name, "steps": steps}
        outputs.save(before, kept, after, {**asked.facts(model), **facts, "seconds": round(elapsed.seconds, 3)})


def _measured(
    model: PictureModel, image: str, task: str, factor: int | None, blur: float | None, mask: str | None, hole: str
) -> tuple[Picture, Tensor, Tensor | None, Tensor, Callable[[Tensor], Tensor]]:
    """The file, what is shown as before, the mask, the measurement, and the operator that it is made by."""
    height, width = model.size()
    if task == "superres":
        times = factor or FACTOR
        fits = height % times == 0 and width % times == 0 and times > 1
        expect(fits, f"--factor must be larger than 1 and divide {height} and {width}, the model's size, got {times}")
        pooling = AveragePooling(times)
        small = read(image, (height // times, width // times))
        return small, pooling.lift(small.values), None, small.values, pooling
    picture = read(image, (height, width))
    values = picture.values
    if task == "deblur":
        sigma, limit = BLUR if blur is None else blur, (min(height, width) - 1) / 3
        expect(0.2 <= sigma <= limit, f"--blur must be 0.2 to {limit:.3g} pixels for this model, got {sigma:g}")
        kernel = gaussian_kernel(2 * int(3 * sigma + 0.5) + 1, sigma)
        return picture, values, None, values, Blurring(kernel)
    assert mask is not None
    kept = read_mask(mask, hole, picture, (height, width))
    shown = kept.to(model.device, torch.float32)
    return picture, values, kept, values.masked_fill(~kept, 0), Masking(shown)
