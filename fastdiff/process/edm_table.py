"""Noise schedules and scalings as Karras et al. 2022, Elucidating the Design Space (EDM), Table 1 has them: every noise
ratio sigma / alpha with every scaling alpha, and the time discretisations that go with them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from fastdiff.errors import expect, unknown
from fastdiff.process.schedules import Float64Array, Schedule


class EDMTable(Schedule):
    """A noise ratio rho(t) and a scaling: alpha = 1 ("none") or 1 / sqrt(1 + rho^2) ("vp"), sigma = alpha rho.

    noise: "vp", sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) with rho(first) = sigma_min and rho(1) = sigma_max; "ve",
    sqrt(t); "linear", t. sigma_min, sigma_max: the noise ratios that the network was trained on. The network receives
    rho. Raises ValueError for an unknown noise or scaling and for levels that do not increase.
    """

    name = "edm-table"

    def __init__(
        self,
        noise: str = "linear",
        scaling: str = "none",
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        *,
        first: float = 1e-3,
    ) -> None:
        if noise not in ("vp", "ve", "linear"):
            raise unknown("noise", noise, ("vp", "ve", "linear"))
        if scaling not in ("vp", "none"):
            raise unknown("scaling", scaling, ("vp", "none"))
        expect(0 < sigma_min < sigma_max, f"0 < sigma_min < sigma_max must hold, got {sigma_min!r} and {sigma_max!r}")
        expect(0 < first < 1, f"first must lie in (0, 1), got {first!r}")
        self.noise, self.scaling, self.first = noise, scaling, first
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
        self.beta_d = 2 * (low / first - high) / (first - 1)
        self.beta_min = high - self.beta_d / 2
        self.t_min, self.t_max = float(self.t_of_ratio(sigma_min)), float(self.t_of_ratio(sigma_max))

    def ratio(self, t: ArrayLike) -> Float64Array:
        """rho(t) = sigma / alpha."""
        t = np.asarray(t, dtype=np.float64)
        if self.noise == "vp":
            # For a wide range of levels beta_min is negative, and rho is 0 from some time before `first` on.
            return np.sqrt(np.maximum(np.expm1(self.beta_d * t**2 / 2 + self.beta_min * t), 0.0))
        return np.sqrt(t) if self.noise == "ve" else t

    def t_of_ratio(self, ratio: ArrayLike) -> Float64Array:
        """The inverse of `ratio`."""
        ratio = np.asarray(ratio, dtype=np.float64)
        if self.noise == "vp":  # the root without cancellation
            c = np.log1p(ratio**2)
            return 2 * c / (self.beta_min + np.sqrt(self.beta_min**2 + 2 * self.beta_d * c))
        return ratio**2 if self.noise == "ve" else ratio

    def log_alpha(self, t: ArrayLike) -> Float64Array:
        ratio = self.ratio(t)
        return -0.5 * np.log1p(ratio**2) if self.scaling == "vp" else np.zeros_like(ratio)

    def sigma(self, t: ArrayLike) -> Float64Array:
        return self.ratio(t) * self.alpha(t)

    def lam(self, t: ArrayLike) -> Float64Array:
        with np.errstate(divide="ignore"):
            return -np.log(self.ratio(t))

    def t_of_lam(self, lam: ArrayLike) -> Float64Array:
        return self.t_of_ratio(np.exp(-np.asarray(lam, dtype=np.float64)))

    def rates(self, t: float) -> tuple[float, float]:
        ratio, alpha = float(self.ratio(t)), float(self.alpha(t))
        if self.noise == "linear":
            rate = 1.0
        elif ratio == 0:
            rate = math.inf
        elif self.noise == "ve":
            rate = 0.5 / ratio
        else:
            rate = 0.5 * (self.beta_min + self.beta_d * t) * (ratio + 1 / ratio)
        if self.scaling == "none":
            return 0.0, rate
        return -ratio * rate * alpha**3 if ratio else 0.0, rate * alpha**3

    def model_time(self, t: float) -> float:
        return float(self.ratio(t))


def vp_steps(schedule: Schedule, steps: int, *, first: float = 1e-3) -> Float64Array:
    """Noise ratios of the variance-preserving process at equal spacing in its time, 1 to `first` (EDM, Table 1)."""
    vp = EDMTable("vp", "none", *_levels(schedule), first=first)
    return _times(schedule, vp.ratio(np.linspace(1.0, vp.first, steps)))


def ve_steps(schedule: Schedule, steps: int) -> Float64Array:
    """Noise ratios in geometric progression (EDM, Table 1)."""
    low, high = _levels(schedule)
    return _times(schedule, np.geomspace(high, low, steps))


def iddpm_steps(
    schedule: Schedule, steps: int, *, levels: int = 1000, c1: float = 0.001, c2: float = 0.008
) -> Float64Array:
    """Noise ratios of the cosine process of `levels` levels, every so many that lie in the schedule's range (EDM,
    Table 1). Raises ValueError where there are fewer than `steps`."""
    alpha_bar = np.sin(0.5 * np.pi * np.arange(levels + 1) / levels / (c2 + 1)) ** 2
    growth = -np.log(np.maximum(alpha_bar[:-1] / alpha_bar[1:], c1))  # of u^2 + 1, from level j to j - 1
    u = np.sqrt(np.expm1(np.append(np.cumsum(growth[::-1])[::-1], 0.0)))
    low, high = _levels(schedule)
    u = u[(u >= low) & (u <= high)]
    expect(len(u) >= steps, f"steps must be at most {len(u)}, the cosine levels in range, got {steps}")
    return _times(schedule, u[np.round(np.linspace(0, len(u) - 1, steps)).astype(int)])


def _levels(schedule: Schedule) -> tuple[float, float]:
    """The noise ratios of the schedule's t_min and t_max."""
    lam = schedule.lam(schedule.t_min), schedule.lam(schedule.t_max)
    expect(bool(np.isfinite(lam).all()), f"this grid divides by alpha, which is 0 at the start of {schedule.name}")
    return float(np.exp(-lam[0])), float(np.exp(-lam[1]))


def _times(schedule: Schedule, ratio: Float64Array) -> Float64Array:
    times = np.minimum(schedule.t_of_lam(-np.log(ratio)), schedule.t_max)  # but for the rounding of the inverse
    return np.append(times, 0.0)
