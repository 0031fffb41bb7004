"""The converged trajectory: what every solver would give from the same noise with enough steps, and how sure that is.

Runs with S / 4, S / 2 and S steps: the last is the reference. With d1 the distance of the first two and d2 that of the
last two, the observed order is p = log2(d1 / d2), and what the last is still off by is d2 / (2^p - 1) (Richardson).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from fastdiff.profiling.drawing import Drawer
from fastdiff.profiling.measures import rms, rmse
from fastdiff.profiling.plan import evaluations
from fastdiff.profiling.settings import Setting
from fastdiff.profiling.store import Store

# Solver and grid of the converged runs: the first that the schedule allows (a grid in lambda needs alpha > 0).
CHOICES = (("unipc-3", None), ("flow-heun", None), ("heun", "uniform"))


@dataclass(frozen=True)
class Reference:
    """pictures: (B, C, H, W) on the CPU, those of samples 0 to B - 1, by that solver, steps and grid. error: their
    estimated RMSE. order: observed; at least 1 is assumed where it comes out lower, and the solver's own at most."""

    pictures: Tensor
    solver: str
    steps: int
    error: float
    order: float
    grid: str | tuple[float, ...] | None = None


def converge(
    drawer: Drawer,
    store: Store,
    target: Setting,
    count: int,
    steps: int,
    batch: int,
    on_step: Callable[..., None] | None = None,
) -> Reference:
    """The reference of a target for samples 0 to count - 1; runs that the store has are not done again.

    steps: of the finest run, a multiple of 4. Raises SamplingError if the model fails.
    """
    finest = [replace(target, solver=solver, grid=grid, steps=steps, batch=batch) for solver, grid in CHOICES]
    chosen = next((setting for setting in finest if evaluations(drawer, setting)), finest[0])
    coarser = (replace(chosen, steps=number) for number in (steps // 4, steps // 2, steps))
    runs = [converged(drawer, store, setting, count, on_step) for setting in coarser]
    error, order = estimate(*runs)
    return Reference(runs[-1], chosen.solver, steps, error, order, chosen.grid)


def converged(
    drawer: Drawer, store: Store, setting: Setting, count: int, on_step: Callable[..., None] | None = None
) -> Tensor:
    """Pictures of samples 0 to count - 1 by one run, which is not done again if the store has it."""
    pictures = store.load_reference(setting.slug, count)
    if pictures is None:
        drawn = drawer.draw(setting, 0, count, on_step)
        pictures = drawer.subject.pictures(drawn.samples).cpu()
        store.save_reference(setting.slug, pictures)
    elif on_step is not None:
        for _ in range(setting.steps):
            on_step()
    return pictures


def estimate(coarse: Tensor, middle: Tensor, fine: Tensor, *, highest: float = 2.0) -> tuple[float, float]:
    """(RMSE that `fine` still has, observed order), from runs that each have twice the steps of the one before."""
    first, second = rms(rmse(coarse, middle)), rms(rmse(middle, fine))
    if second == 0:
        return 0.0, highest
    order = min(highest, max(1.0, math.log2(first / second) if first > 0 else 1.0))
    return second / (2**order - 1), order
