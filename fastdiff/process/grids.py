"""Where a solver evaluates the model: decreasing times from t_max to the data.

Every grid takes a schedule and a number of steps and returns (steps + 1,) float64 times, the last one 0, the data.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from fastdiff.arguments import described, number, whole
from fastdiff.errors import expect, unknown
from fastdiff.process.schedules import Float64Array, Schedule, VPDiscrete, get_schedule

Grid = Callable[[Schedule, int], Float64Array]


def _checked(grid: Callable[..., Float64Array]) -> Callable[..., Float64Array]:
    """The grid, which takes a schedule by its name too, and says which argument does not fit."""

    @functools.wraps(grid)
    def checked(schedule: Schedule | str, steps: int, **options: Any) -> Float64Array:
        return grid(get_schedule(schedule), whole("steps", steps, 1), **options)

    return checked


@_checked
def uniform(schedule: Schedule, steps: int) -> Float64Array:
    """Equal spacing in t (Lu et al. 2022, DPM-Solver, `time_uniform`)."""
    return _to_data(np.linspace(schedule.t_max, schedule.t_min, steps))


@_checked
def quadratic(schedule: Schedule, steps: int) -> Float64Array:
    """Equal spacing in sqrt(t) (Song et al. 2021, DDIM, Appendix D.2)."""
    times = np.linspace(schedule.t_max**0.5, schedule.t_min**0.5, steps) ** 2
    return _to_data(_pin_ends(times, schedule))


@_checked
def logsnr(schedule: Schedule, steps: int) -> Float64Array:
    """Equal spacing in lambda = log(alpha / sigma) (Lu et al. 2022, DPM-Solver, Section 3.3)."""
    lam = np.linspace(_first_lam(schedule), schedule.lam(schedule.t_min), steps)
    return _to_data(_pin_ends(schedule.t_of_lam(lam), schedule))


@_checked
def karras(schedule: Schedule, steps: int, *, rho: float = 7.0) -> Float64Array:
    """Equal spacing in (sigma / alpha)^(1 / rho) (Karras et al. 2022, EDM, Eq. 5)."""
    first, last = np.exp(-_first_lam(schedule)), np.exp(-schedule.lam(schedule.t_min))
    rho = number("rho", rho)
    expect(rho > 0, f"rho must be positive, got {rho!r}")
    ratio = np.linspace(first ** (1 / rho), last ** (1 / rho), steps) ** rho
    return _to_data(_pin_ends(schedule.t_of_lam(-np.log(ratio)), schedule))


@_checked
def exponential(schedule: Schedule, steps: int) -> Float64Array:
    """Equal spacing in log(sigma / alpha), k-diffusion's name for `logsnr`."""
    return logsnr(schedule, steps)


@_checked
def shifted(schedule: Schedule, steps: int) -> Float64Array:
    """Equal spacing in t, moved towards the noise: shift t / (1 + (shift - 1) t) (Esser et al. 2024, Eq. 23), the shift
    being the schedule's. Unlike the other grids it has no point of its own at t_min: the last step ends at the data."""
    shift = getattr(schedule, "shift", 1.0)
    t = np.linspace(schedule.t_max, 0.0, steps + 1)
    return shift * t / (1 + (shift - 1) * t)


@_checked
def fast(schedule: Schedule, steps: int, *, order: int = 3) -> Float64Array:
    """The points of DPM-Solver-fast (Lu et al. 2022, DPM-Solver, Section 3.3) for steps - 1 model calls down to t_min,
    and one to the data: its steps, of the orders of `fast_orders`, are equal in lambda, and their inner points too."""
    orders = fast_orders(steps - 1, order)
    outer = np.linspace(_first_lam(schedule), schedule.lam(schedule.t_min), len(orders) + 1)
    steps_of = [np.linspace(a, b, k + 1)[:-1] for a, b, k in zip(outer, outer[1:], orders)]
    lam = np.concatenate([*steps_of, outer[-1:]])
    return _to_data(_pin_ends(schedule.t_of_lam(lam), schedule))


def fast_orders(calls: int, order: int) -> list[int]:
    """The steps of DPM-Solver-fast by their orders, which add up to `calls`: as many of `order` as the last ones, which
    are lower, leave room for (Lu et al. 2022, DPM-Solver, Section 3.3; for order 2 their code)."""
    expect(order in (1, 2, 3), f"order must be 1, 2 or 3, got {order!r}")
    full, rest = divmod(calls, order)
    if order == 3 and rest == 0 and full > 0:
        return [3] * (full - 1) + [2, 1]
    return [order] * full + [rest] * (rest > 0)


@_checked
def leading(schedule: Schedule, steps: int) -> Float64Array:
    """Every (N // steps)-th training step from n = 0 upwards (Song et al. 2021, DDIM, released code)."""
    n = _training_steps(schedule, steps)
    return _to_data((np.arange(steps)[::-1] * (n // steps) + 1) / n)


@_checked
def trailing(schedule: Schedule, steps: int) -> Float64Array:
    """Every (N / steps)-th training step from the last downwards (Lin et al. 2024, Table 2)."""
    n = _training_steps(schedule, steps)
    return _to_data(np.round(np.arange(steps, 0, -1) * n / steps) / n)


@_checked
def linspace(schedule: Schedule, steps: int) -> Float64Array:
    """Training steps rounded from an equal spacing that holds both ends (Nichol & Dhariwal 2021, Section 4)."""
    n = _training_steps(schedule, steps)
    return _to_data((np.round(np.linspace(n - 1, 0, steps)) + 1) / n)


_GRIDS = (uniform, quadratic, logsnr, exponential, karras, shifted, fast, leading, trailing, linspace)
GRIDS: dict[str, Grid] = {g.__name__: g for g in _GRIDS}


def make_grid(grid: str | Grid | Float64Array, schedule: Schedule, steps: int) -> Float64Array:
    """The times of `grid`: a name, a function like those above, or the times themselves.

    Raises ValueError for an unknown name, steps < 1, and times that do not decrease within [0, t_max].
    """
    if isinstance(grid, str):
        if grid not in GRIDS:
            raise unknown("grid", grid, GRIDS)
        grid = GRIDS[grid]
    steps = whole("steps", steps, 1)
    if callable(grid):
        grid = grid(schedule, steps)
    try:
        times = np.asarray(grid, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"grid must be a name, a function or decreasing times, got {described(grid)}") from None
    expect(times.ndim == 1 and times.size >= 2, f"grid must hold at least two times, got shape {times.shape}")
    if not (times[1:] < times[:-1]).all():  # not `expect`: printing the times costs more than the rest of this
        raise ValueError(f"the times of a grid must decrease, got {described(times.tolist(), typed=False)}")
    if not (times[-1] >= 0 and times[0] <= schedule.t_max):
        raise ValueError(f"grid must lie in [0, {schedule.t_max:g}], got {described(times.tolist(), typed=False)}")
    return times


def _to_data(times: Float64Array) -> Float64Array:
    return np.append(times, 0.0)


def _first_lam(schedule: Schedule) -> float:
    lam = float(schedule.lam(schedule.t_max))
    expect(np.isfinite(lam), f"this grid divides by alpha, which is 0 at the start of {schedule.name}; use uniform")
    return lam


def _pin_ends(times: Float64Array, schedule: Schedule) -> Float64Array:
    """Undo the rounding of the way there and back at the ends."""
    times[0] = schedule.t_max
    if len(times) > 1:
        times[-1] = schedule.t_min
    return times


def _training_steps(schedule: Schedule, steps: int) -> int:
    if not isinstance(schedule, VPDiscrete):
        raise ValueError(f"this grid picks training steps, and {schedule.name} has none; use uniform")
    expect(steps <= schedule.num_steps, f"steps must be at most the schedule's {schedule.num_steps}, got {steps}")
    return schedule.num_steps
