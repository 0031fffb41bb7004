"""Seconds of all settings together: settings that call the same network share what a call costs.

A run of a setting takes calls x cost of a call + overhead of the solver. The cost of a call depends on what computes
(backend, precision, caching), on the batch, and on whether the call is guided. All runs of a sweep are fitted at once,
so that a busy phase of the machine that met one setting only is seen as what it is. The fit is robust: others make runs
slower and never faster, so it starts from a low quantile (Koenker & Bassett 1978) and then takes the mean of what
lies about it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastdiff.profiling.load import is_busy

Float64Array = NDArray[np.float64]
QUANTILE = 0.3
SLACK = 0.05  # what is slower by less is no outlier, however small the spread
LEAST_SPREAD = 0.005
RIDGE = 1e-3  # towards 0, relative
OVERHEAD_RIDGE = 0.03  # of overheads: what the runs do not tell apart from calls is taken for calls
OWN = 3.0  # standard errors by which a setting must differ to have a time of its own


@dataclass(frozen=True)
class Run:
    """One timed run. setting: its name. kind: what shares costs, solver: what shares an overhead. calls: by what is
    called, such as "guided" or "reused". seconds: of the run. others: cores used by others, None if unknown."""

    setting: Hashable
    kind: Hashable
    solver: str
    calls: tuple[tuple[str, float], ...]
    seconds: float
    others: float | None = None


@dataclass(frozen=True)
class Time:
    """seconds: of a run. noise: relative standard error of them. own: whether the setting is truly slower or faster
    than its calls explain, so that its own runs were taken."""

    seconds: float
    noise: float
    own: bool = False


@dataclass(frozen=True)
class Costs:
    """times: by setting. spread: relative, of the runs about the fit. outliers: indices of the runs that were slower
    than it, more than the spread explains. busy: the share of runs during which others used the machine. parts: seconds
    of a call by (kind, what), and of a run by solver."""

    times: Mapping[Hashable, Time]
    spread: float
    outliers: tuple[int, ...]
    busy: float
    parts: Mapping[Hashable, float]


def estimate(runs: Sequence[Run]) -> Costs:
    """Fit all runs, at least one."""
    seconds = np.array([run.seconds for run in runs])
    design, columns = _design(runs)
    ridge = np.array([OVERHEAD_RIDGE if isinstance(name, str) else RIDGE for name in columns])
    loaded = np.array([is_busy(run.others) for run in runs])
    weight = np.where(loaded, 0.1, 1.0)  # not left out: there may be no others
    beta = _quantile(design, seconds, weight, ridge)
    spread, good = 0.0, np.ones(len(runs), bool)
    for _ in range(4):
        fitted = design @ beta
        residual = seconds / fitted - 1
        spread = _spread(residual, good)
        good = residual <= max(3 * spread, SLACK)
        if not _covers(design, good):
            break
        beta = _least_squares(design[good], seconds[good], weight[good], ridge)
    fitted = design @ beta
    residual = seconds / fitted - 1
    spread = _spread(residual, good)
    outliers = tuple(np.flatnonzero(residual > max(3 * spread, SLACK)).tolist())
    settings = list(dict.fromkeys(run.setting for run in runs))
    members = {setting: np.array([run.setting == setting for run in runs]) for setting in settings}
    times = {}
    for setting, of in members.items():
        whole = float(np.median(fitted[of]))
        times[setting] = _time(whole, residual[of], loaded[of], spread, int(good.sum()), len(columns))
    return Costs(times, spread, outliers, float(loaded.mean()), dict(zip(columns, beta.tolist())))


def _time(whole: float, residual: Float64Array, loaded: NDArray[np.bool_], spread: float, good: int, fits: int) -> Time:
    """Of one setting, from the fit and from how its own runs differ from it."""
    shared = spread * np.sqrt(fits / max(1, good))  # of the fit
    quiet = residual[~loaded]
    if len(quiet):
        error = max(spread, float(quiet.std())) / np.sqrt(len(quiet))
        own = float(np.median(quiet))
        if len(quiet) >= 2 and abs(own) > max(OWN * error, SLACK):
            return Time(whole * (1 + own), max(error, LEAST_SPREAD), True)
    return Time(whole, float(max(shared, LEAST_SPREAD)))


def _design(runs: Sequence[Run]) -> tuple[Float64Array, list[Hashable]]:
    """(runs, costs) counts: a column for every kind of call, and one for the overhead of every solver."""
    names = [[((run.kind, what), count) for what, count in run.calls] + [(run.solver, 1.0)] for run in runs]
    columns: list[Hashable] = list(dict.fromkeys(name for row in names for name, _ in row))
    places = {name: k for k, name in enumerate(columns)}
    design = np.zeros((len(runs), len(columns)))
    for k, row in enumerate(names):
        for name, count in row:
            design[k, places[name]] += count
    return design, columns


def _quantile(design: Float64Array, seconds: Float64Array, weight: Float64Array, ridge: Float64Array) -> Float64Array:
    """Costs of which a share `QUANTILE` of the runs lies below, in relative terms: reweighted least squares."""
    beta = _least_squares(design, seconds, weight, ridge)
    for _ in range(60):
        residual = seconds / np.maximum(design @ beta, 1e-12) - 1
        side = np.where(residual > 0, QUANTILE, 1 - QUANTILE)
        beta = _least_squares(design, seconds, weight * side / np.maximum(np.abs(residual), 1e-4), ridge)
    return beta


def _least_squares(
    design: Float64Array, seconds: Float64Array, weight: Float64Array, ridge: Float64Array
) -> Float64Array:
    """Costs >= 0 with the least relative squares: what would be negative is 0, one after the other."""
    root = np.sqrt(weight / weight.mean()) / seconds
    scaled, target = design * root[:, None], root * seconds
    size = np.sqrt(np.square(scaled).mean(0)) + 1e-300
    active = np.ones(design.shape[1], bool)
    found = np.zeros(design.shape[1])
    while active.any():
        part = scaled[:, active] / size[active]
        normal = part.T @ part + len(seconds) * np.diag(np.square(ridge[active]))
        solved = np.linalg.solve(normal, part.T @ target)
        if (solved >= 0).all():
            found[active] = solved / size[active]
            break
        active[np.flatnonzero(active)[np.argmin(solved)]] = False
    return found


def _spread(residual: Float64Array, good: NDArray[np.bool_]) -> float:
    """Relative, from the faster side, which others do not widen."""
    inside = residual[good] if good.any() else residual
    middle = np.median(inside)
    below = middle - inside[inside <= middle]
    return float(np.clip(1.4826 * np.median(below) if len(below) else 0.0, LEAST_SPREAD, 0.15))


def _covers(design: Float64Array, good: NDArray[np.bool_]) -> bool:
    """Whether every cost is in a run that is left."""
    return bool((design[good].sum(0) > 0).all())
