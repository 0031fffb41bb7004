"""Samples of a model in batches with their progress, from noise or from a picture: `sample` and `edit variation`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fastdiff
from fastdiff.bench.timing import Elapsed, timed
from fastdiff.cli.console import progress, say_if_busy
from fastdiff.cli.picture_model import PictureModel
from fastdiff.errors import expect
from fastdiff.process.grids import make_grid
from fastdiff.solvers import Solver, get_solver

SOLVER, STEPS, STRENGTH = "dpmpp-2m", 15, 0.6


@dataclass(frozen=True)
class Run:
    """A solver on a grid, whose steps are checked when it is made."""

    model: PictureModel
    solver: Solver
    steps: int
    grid: str | None
    seed: int

    def __post_init__(self) -> None:
        self.times()

    def times(self) -> list[float]:
        """The grid's. Raises ValueError for one that cannot be made."""
        grid = self.grid or self.model.schedule.grid or self.solver.grid
        return make_grid(grid, self.model.schedule, self.steps).tolist()


def run_of(model: PictureModel, solver: str | None, steps: int | None, grid: str | None, seed: int) -> Run:
    """What is None is the model's own, as of `fastdiff.sample`."""
    own = model.sampling
    chosen = get_solver(solver or (SOLVER if own is None else own.solver))
    expect(steps is None or not chosen.adaptive, f"--steps: {chosen.name} chooses its own steps")
    if own is not None and chosen.name == own.solver:
        steps, grid = steps or own.steps, grid or own.grid
    return Run(model, chosen, steps or STEPS, grid, seed)


def strength_of(given: float | None, image: str | None) -> float:
    """The strength of a variation. Raises ValueError for one outside of (0, 1], and without a picture."""
    expect(given is None or image is not None, "--strength needs --image")
    strength = STRENGTH if given is None else given
    expect(0 < strength <= 1, f"--strength must be in (0, 1], got {strength:g}")
    return strength


def draw(
    run: Run, total: int, batch: int, finished: list[Tensor], *, picture: Tensor | None = None, strength: float = 1.0
) -> Elapsed:
    """Samples 0 to total - 1 into `finished`, batch by batch, so that those are kept that were ready before Ctrl-C.

    picture: (1, 3, H, W) to start from (SDEdit), with noise up to `strength` of the way to the grid's first time.
    """
    say_if_busy()
    model, times = run.model, run.times()
    start, starts, left = None, None, run.steps
    if picture is not None:
        start = times[-1] + strength * (times[0] - times[-1])
        left = sum(t < start for t in times)
        samples = model.samples(picture).expand(total, -1, -1, -1)
        starts = fastdiff.diffuse(samples, model.schedule, start, seed=run.seed)
    # with a callback a GPU could not replay the loop as one graph
    whole = model.device.type == "cuda"
    with timed(model.device) as elapsed, torch.no_grad(), progress() as bar:
        task = bar.add(
            f"{run.solver.name}, {run.steps} step{'s' * (run.steps != 1)}",
            None if run.solver.adaptive else left * -(-total // batch),
        )
        for first in range(0, total, batch):
            size = min(batch, total - first)
            finished.append(
                fastdiff.sample(
                    model.network,
                    (size, *model.shape) if starts is None else starts[first : first + size],
                    start=start,
                    solver=run.solver,
                    steps=run.steps,
                    grid=run.grid,
                    seed=run.seed,
                    first_sample=first,
                    callback=None if whole else lambda *_: bar.advance(task),
                    **model.given(first, size),
                )
            )
            if whole:
                bar.advance(task, left)
    return elapsed


@contextmanager
def counted(model: PictureModel, description: str, calls: int) -> Iterator[Elapsed]:
    """Progress by the calls of the network, for methods without a callback; none on a GPU, whose calls are replayed."""
    say_if_busy()
    with timed(model.device) as elapsed, progress() as bar:
        task, hook = bar.add(description, calls), None
        if isinstance(model.network, nn.Module) and model.device.type == "cpu":
            hook = model.network.register_forward_hook(lambda *_: bar.advance(task))
        try:
            yield elapsed
        finally:
            if hook is not None:
                hook.remove()
