"""What every noise schedule has: its points, its key, and what follows from log_alpha and sigma.

Subclasses give log_alpha, sigma, t_of_lam and rates.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastdiff.arguments import described, number
from fastdiff.errors import expect

Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One time of a schedule with all that a solver's formula needs, as Python floats (float64).

    t: schedule time. alpha, sigma: scale of the signal and of the noise. lam: log(alpha / sigma).
    """

    t: float
    alpha: float
    sigma: float
    lam: float


def inner_time(t_min: float) -> float:
    """The check of a schedule's t_min."""
    t_min = number("t_min", t_min)
    expect(0 < t_min < 1, f"t_min must lie in (0, 1), got {t_min!r}")
    return t_min


class Schedule(ABC):
    """What solvers, grids and training ask of a schedule; subclasses give log_alpha, sigma, t_of_lam and rates.

    t_min, t_max: the range of times on which the network was trained. name: for tables and files. grid: the one that
    is customary for it, None where that is the solver's affair.
    All methods take a float or an array of any shape and return a float64 array of that shape.
    """

    name: str
    t_min: float
    t_max: float
    grid: str | None = None

    @cached_property
    def key(self) -> tuple:
        """What tells this schedule from others: its class and parameters. Equal keys are equal schedules."""
        parameters = sorted((k, v) for k, v in vars(self).items() if k not in ("key", "_hash"))
        return type(self), *((k, v.tobytes() if isinstance(v, np.ndarray) else v) for k, v in parameters)

    def __repr__(self) -> str:
        names = [name for name in inspect.signature(type(self)).parameters if name in vars(self)]
        return f"{type(self).__name__}({', '.join(f'{name}={vars(self)[name]!r}' for name in names)})"

    @cached_property
    def _hash(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Schedule) and self.key == other.key)

    def __hash__(self) -> int:
        return self._hash

    @abstractmethod
    def log_alpha(self, t: ArrayLike) -> Float64Array:
        """log alpha(t)."""

    @abstractmethod
    def sigma(self, t: ArrayLike) -> Float64Array:
        """sigma(t), the standard deviation of the noise."""

    @abstractmethod
    def t_of_lam(self, lam: ArrayLike) -> Float64Array:
        """The time at which log(alpha / sigma) is `lam`."""

    @abstractmethod
    def rates(self, t: float) -> tuple[float, float]:
        """(d alpha / dt, d sigma / dt); from the left where they jump."""

    def drift_diffusion(self, t: float) -> tuple[float, float]:
        """(f, g^2) of the forward SDE dx = f x dt + g dw: f = d log alpha / dt, g^2 = d sigma^2 / dt - 2 f sigma^2
        (Kingma et al. 2021, Variational Diffusion Models, Appendix A)."""
        p, (d_alpha, d_sigma) = self.point(t), self.rates(t)
        f = d_alpha / p.alpha
        return f, 2 * p.sigma * (d_sigma - f * p.sigma)

    def alpha(self, t: ArrayLike) -> Float64Array:
        """alpha(t), the scale of the data."""
        return np.exp(self.log_alpha(t))

    def lam(self, t: ArrayLike) -> Float64Array:
        """lambda(t) = log(alpha(t) / sigma(t)), half the log signal-to-noise ratio; inf at the data."""
        with np.errstate(divide="ignore"):
            return self.log_alpha(t) - np.log(self.sigma(t))

    def prior_std(self, t: float) -> float:
        """Standard deviation of the noise that a run from time `t` starts with."""
        return float(self.sigma(t))

    def model_time(self, t: float) -> float:
        """The time argument of the network at schedule time `t`; `t` itself unless a subclass says otherwise."""
        return t

    def point(self, t: float) -> Point:
        """alpha, sigma and lambda at time `t`. Raises ValueError unless 0 <= t <= t_max."""
        return _point(self, float(t))

    def points(self, times: ArrayLike) -> list[Point]:
        """The points of a vector of times. Raises ValueError unless all lie in [0, t_max]."""
        t = np.asarray(times, dtype=np.float64)
        outside = t[~((t >= 0) & (t <= self.t_max * (1 + 1e-12)))]
        expect(outside.size == 0, f"t must lie in [0, {self.t_max:g}], got {described(outside.tolist(), typed=False)}")
        return [Point(*p) for p in zip(*(a.tolist() for a in (t, self.alpha(t), self.sigma(t), self.lam(t))))]


@lru_cache(maxsize=4096)
def _point(schedule: Schedule, t: float) -> Point:
    """A point on its own, as stages between two points of a grid ask for it; several of them for the same."""
    return schedule.points([t])[0]
