"""Convergence of solvers as published: error against model calls on an exact model, beside the papers' figures.

The exact model is a mixture of Gaussians in the plane, whose score is known in closed form; errors are distances to a
run with very many steps, in float64. The papers report FID on CIFAR-10, which is another quantity on another model:
their figures are quoted with their source, and only the order of the solvers can be set beside ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastdiff
from fastdiff.process.schedules import VPLinear
from fastdiff.solvers import get_solver

SOLVERS = (
    "ddim",
    "dpm-solver-2",
    "dpm-solver-3",
    "dpmpp-2m",
    "dpmpp-3m",
    "deis-2",
    "deis-3",
    "heun",
    "unipc-2",
    "unipc-3",
)
CALLS = (6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
SAMPLES = 512
EXACT_STEPS = 4000


@dataclass(frozen=True)
class Quoted:
    """FID on CIFAR-10 (unconditional) that a paper reports, by model calls."""

    method: str
    fid: dict[int, float]
    source: str


# Quoted, not measured here.
PUBLISHED = (
    Quoted("DDIM", {10: 13.36, 20: 6.84, 50: 4.67, 100: 4.16}, "Song et al. 2021, DDIM, Table 1 (eta = 0)"),
    Quoted("DPM-Solver", {10: 4.70, 20: 2.87}, "Lu et al. 2022, DPM-Solver, abstract"),
    Quoted("DEIS", {10: 4.17, 15: 3.37, 20: 2.86}, "Zhang & Chen 2023, DEIS, abstracts of the preprint and at ICLR"),
    Quoted("UniPC", {10: 3.87}, "Zhao et al. 2023, UniPC, abstract"),
    Quoted("EDM's Heun", {35: 1.97}, "Karras et al. 2022, EDM, abstract"),
)


class Mixture:
    """A mixture of Gaussians: means (K, D), one std for all, equal weights; eps in closed form."""

    def __init__(self, means: Tensor, std: float, schedule: Any) -> None:
        self.means, self.std, self.schedule = means.double(), std, schedule

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """eps at x (B, D), for times t (B,): sigma (x - E[alpha x0 | x]) / (variance) with the posterior weights."""
        point = self.schedule.point(float(t[0]))
        variance = (point.alpha * self.std) ** 2 + point.sigma**2
        away = x[:, None] - point.alpha * self.means  # (B, K, D)
        weights = (-away.square().sum(-1) / (2 * variance)).softmax(1)
        return point.sigma / variance * (weights[..., None] * away).sum(1)


def mixture(schedule: Any) -> Mixture:
    """Eight Gaussians on a circle."""
    angles = torch.arange(8, dtype=torch.float64, device="cpu") * torch.pi / 4
    return Mixture(torch.stack([angles.cos(), angles.sin()], 1), 0.1, schedule)


def grid(schedule: Any, steps: int) -> np.ndarray:
    """Equal steps in lambda from t_max to t_min, without the last step to the data, which no solver resolves."""
    lam = np.linspace(schedule.lam(schedule.t_max), schedule.lam(schedule.t_min), steps + 1)
    times = schedule.t_of_lam(lam)
    times[0], times[-1] = schedule.t_max, schedule.t_min
    return times


def errors(
    solvers: Sequence[str] = SOLVERS,
    calls: Sequence[int] = CALLS,
    *,
    samples: int = SAMPLES,
    exact_steps: int = EXACT_STEPS,
) -> dict[str, dict[int, float]]:
    """Solver -> model calls -> RMS distance to the exact solution over the samples."""
    schedule = VPLinear()
    known = {solver: get_solver(solver) for solver in solvers}  # refuses unknown ones before the work
    model = mixture(schedule)
    numbers = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(samples, 2, dtype=torch.float64, device="cpu", generator=numbers)

    def draw(solver: str, steps: int, network: Callable[..., Tensor]) -> Tensor:
        return fastdiff.sample(
            network, x, schedule=schedule, prediction="eps", solver=solver, grid=grid(schedule, steps), seed=0
        )

    exact = draw("dpmpp-3m", exact_steps, model)
    found: dict[str, dict[int, float]] = {}
    for solver in solvers:
        for wanted in calls:
            steps = wanted // known[solver].evaluations
            counted = 0

            def network(x: Tensor, t: Tensor) -> Tensor:
                nonlocal counted
                counted += 1
                return model(x, t)

            if steps >= 2:
                error = float((draw(solver, steps, network) - exact).square().mean().sqrt())
                found.setdefault(solver, {})[counted] = error
    return found


def orders(found: dict[str, dict[int, float]], *, last: int = 4) -> dict[str, float]:
    """The slope of the last points of each curve: the order of convergence that is seen there."""
    result = {}
    for solver, curve in found.items():
        points = sorted(curve.items())[-last:]
        if len(points) >= 2:
            calls, error = zip(*points)
            result[solver] = float(-np.polyfit(np.log(calls), np.log(error), 1)[0])
    return result
