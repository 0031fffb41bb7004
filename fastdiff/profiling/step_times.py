"""Step times for a model, from its own trajectories: dynamic programming over a fine run.

In y = x / alpha and r = sigma / alpha the probability-flow ODE is dy/dr = eps, and a step of DDIM is Euler's (Song et
al. 2021, Eq. 14). What one step from point i to point j of a fine run misses is |y_j - y_i - (r_j - r_i) y_i'|, and the
times of the least sum of these are a shortest path (Chen et al. 2024, On the Trajectory Regularity of ODE-based
Diffusion Sampling, Section 4: GITS). Where the run starts with alpha = 0 there is no y, and no such times.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.process.schedules import Schedule

Float64Array = NDArray[np.float64]


def step_costs(schedule: Schedule, times: Sequence[float], states: Sequence[Tensor]) -> Float64Array:
    """(T, T): the RMS of what one step from each point of a fine run to each later one misses; infinite elsewhere.

    times: T decreasing ones; states: at each of them, (B, ...). Raises ValueError where alpha is 0 at the first.
    """
    points = schedule.points(times)
    expect(points[0].alpha > 0, f"times cannot be found on {schedule.name}, where alpha is 0 at the start")
    expect(len(points) == len(states) >= 3, f"a fine run needs a state a time, got {len(states)} of {len(points)}")
    y = torch.stack([x.double().flatten().cpu() / p.alpha for x, p in zip(states, points)])
    r = np.array([p.sigma / p.alpha for p in points])
    slope = (y[1:] - y[:-1]) / torch.from_numpy(np.diff(r))[:, None]
    found = np.full((len(points), len(points)), np.inf)
    for i in range(len(points) - 1):
        missed = y[i + 1 :] - y[i] - torch.from_numpy(r[i + 1 :] - r[i])[:, None] * slope[i]
        found[i, i + 1 :] = missed.square().mean(1).sqrt().numpy()
    return found


def best_times(times: Sequence[float], costs: Float64Array, steps: int, power: float = 1.0) -> tuple[float, ...]:
    """steps + 1 of the times, first and last included, with the least sum of costs ** power.

    power: 1 for a method of first order; (order + 1) / 2 for another one, whose step misses so much less where it is
    short. Raises ValueError for more steps than the fine run has.
    """
    last = len(times) - 1
    expect(1 <= steps <= last, f"steps must lie in [1, {last}], those of the fine run, got {steps}")
    edges = np.power(costs, power)
    total = np.full(last + 1, np.inf)
    total[0] = 0.0
    before: list[NDArray[np.intp]] = []
    for _ in range(steps):
        sums = total[:, None] + edges
        before.append(sums.argmin(0))
        total = sums.min(0)
    path = [last]
    for came in reversed(before):
        path.append(int(came[path[-1]]))
    return tuple(float(times[k]) for k in reversed(path))


def moved(schedule: Schedule, times: Sequence[float], index: int, share: float) -> tuple[float, ...] | None:
    """The times with one of them, not the first or last, moved by a share of the way to its neighbour in lambda:
    forward if positive, back if negative; None where that cannot be, as towards the data."""
    lam = schedule.lam(np.array(times, dtype=np.float64))
    other = lam[index + 1 if share > 0 else index - 1]
    if not np.isfinite(other) or not np.isfinite(lam[index]):
        return None
    t = float(schedule.t_of_lam(lam[index] + abs(share) * (other - lam[index])))
    return (*times[:index], t, *times[index + 1 :]) if times[index - 1] > t > times[index + 1] else None
