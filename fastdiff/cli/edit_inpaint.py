"""`fastdiff edit inpaint`: fill the hole of a picture."""

from __future__ import annotations

import torch

from fastdiff import editing
from fastdiff.bench.timing import timed
from fastdiff.cli.console import progress
from fastdiff.cli.drawing import Run
from fastdiff.cli.edit_files import Asked, Outputs, read, read_mask, shrunk
from fastdiff.editing.inpainting import METHODS
from fastdiff.editing.posterior import MCG
from fastdiff.errors import expect, unknown
from fastdiff.solvers import Solver, get_solver

JUMPS = (5, 2)  # of RePaint: 50 steps for 20


def run(
    asked: Asked,
    outputs: Outputs,
    image: str,
    mask: str,
    hole: str,
    method_name: str,
    jumps: str | None,
    solver_name: str,
    steps: int,
    grid: str | None,
) -> None:
    """See `fastdiff edit inpaint --help`."""
    method, times = _method(method_name, solver_name, jumps, steps)
    model = asked.opened(outputs.count)
    Run(model, get_solver(solver_name), steps, grid, asked.seed)  # refuses a bad grid
    picture = read(image, model.size())
    kept = read_mask(mask, hole, picture, model.size())
    samples = model.samples(picture.values).expand(outputs.count, -1, -1, -1)
    on_gpu = model.device.type == "cuda"  # with a callback a GPU could not replay the loop as one graph
    with outputs.folders(picture):
        with timed(model.device) as elapsed, torch.no_grad(), progress() as bar:
            task = bar.add(f"{method.name}, {times} step{'s' * (times != 1)}", times)
            filled = editing.inpaint(
                model.network, samples, shrunk(kept, model), method=method, steps=steps, grid=grid, seed=asked.seed,
                limits=None if model.latent else (-1.0, 1.0),
                callback=None if on_gpu else lambda *_: bar.advance(task),
                **model.given(0, outputs.count),
            )  # fmt: skip
        # what is kept has the bits of the picture, also where an autoencoder or a lower precision came between
        after = torch.where(kept, picture.values, model.pictures(filled).cpu())
        facts = {"image": image, "mask": mask, "method": method_name, "solver": solver_name, "steps": steps}
        outputs.save(picture.values, kept, after, {**asked.facts(model), **facts, "seconds": round(elapsed.seconds, 3)})


def _method(name: str, solver_name: str, jumps: str | None, steps: int) -> tuple[Solver | MCG, int]:
    """The method around the solver, and how many steps it makes."""
    if name not in METHODS:
        raise unknown("--method", name, METHODS)
    expect(jumps is None or name == "repaint", f"--jumps is for --method repaint, not {name}")
    if name != "repaint":
        return METHODS[name](solver_name), steps
    parts = [part.strip() for part in (jumps or ":".join(map(str, JUMPS))).split(":")]
    good = len(parts) == 2 and all(part.isdigit() and int(part) >= 1 for part in parts)
    expect(good, f"--jumps must be like 5:2, steps of a jump and how often each stretch is taken, got {jumps!r}")
    found = editing.Jumps(int(parts[0]), int(parts[1]))
    return editing.repaint(solver_name, found), len(found.times(steps)) - 1
