"""`fastdiff edit variation`: SDEdit, as `fastdiff sample --image` does it."""

from __future__ import annotations

import torch

from fastdiff.cli import drawing
from fastdiff.cli.edit_files import Asked, Outputs, read
from fastdiff.solvers import get_solver


def run(
    asked: Asked,
    outputs: Outputs,
    image: str,
    strength: float | None,
    solver_name: str | None,
    steps: int | None,
    grid: str | None,
    batch: int,
) -> None:
    """See `fastdiff edit variation --help`."""
    get_solver(solver_name or drawing.SOLVER)  # refuses one that there is not before a model is loaded
    strength = drawing.strength_of(strength, image)
    model = asked.opened(outputs.count)
    planned = drawing.run_of(model, solver_name, steps, grid, asked.seed)
    picture = read(image, model.size())
    with outputs.folders(picture):
        finished: list[torch.Tensor] = []
        elapsed = drawing.draw(planned, outputs.count, batch, finished, picture=picture.values, strength=strength)
        after = torch.cat([model.pictures(part) for part in finished])
        facts = {"image": image, "strength": strength, "solver": planned.solver.name, "steps": planned.steps}
        outputs.save(picture.values, None, after, {**asked.facts(model), **facts, "seconds": round(elapsed.seconds, 3)})
