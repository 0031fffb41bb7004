"""Variance-exploding schedules, where alpha = 1."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from fastdiff.arguments import number
from fastdiff.errors import expect
from fastdiff.process.schedules.base import Float64Array, Schedule, inner_time


class _Exploding(Schedule):
    """alpha = 1; sigma_min, sigma_max: the noise levels the network was trained on. The network receives sigma."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        sigma_min, sigma_max = number("sigma_min", sigma_min), number("sigma_max", sigma_max)
        expect(0 < sigma_min < sigma_max, f"0 < sigma_min < sigma_max must hold, got {sigma_min!r} and {sigma_max!r}")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def log_alpha(self, t: ArrayLike) -> Float64Array:
        return np.zeros_like(np.asarray(t, dtype=np.float64))

    def model_time(self, t: float) -> float:
        return float(self.sigma(t))


class EDM(_Exploding):
    """The variance-exploding process with the noise level as its time (Karras et al. 2022, EDM): alpha = 1, sigma(t) =
    t.

    sigma_min, sigma_max: the noise levels the network was trained on. The network receives sigma, or what its
    prediction type says.
    """

    name = "edm"

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        super().__init__(sigma_min, sigma_max)
        self.t_min, self.t_max = self.sigma_min, self.sigma_max

    def sigma(self, t: ArrayLike) -> Float64Array:
        return np.asarray(t, dtype=np.float64)

    def t_of_lam(self, lam: ArrayLike) -> Float64Array:
        return np.exp(-np.asarray(lam, dtype=np.float64))

    def rates(self, t: float) -> tuple[float, float]:
        return 0.0, 1.0


class VE(_Exploding):
    """The variance-exploding SDE (Song et al. 2021, Score SDE, Eq. 30 and Appendix C): alpha = 1 and
    sigma(t) = sigma_min (sigma_max / sigma_min)^t down to t_min, and from there linear to sigma = 0 at the data.

    sigma_min, sigma_max: the noise levels the network was trained on. The network receives sigma.
    """

    name = "ve"

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, *, t_min: float = 1e-5) -> None:
        super().__init__(sigma_min, sigma_max)
        self.t_min, self.t_max = inner_time(t_min), 1.0

    def sigma(self, t: ArrayLike) -> Float64Array:
        t = np.asarray(t, dtype=np.float64)
        geometric = self.sigma_min * (self.sigma_max / self.sigma_min) ** np.maximum(t, self.t_min)
        return geometric * np.minimum(t / self.t_min, 1.0)

    def t_of_lam(self, lam: ArrayLike) -> Float64Array:
        sigma = np.exp(-np.asarray(lam, dtype=np.float64))
        last = self.sigma(self.t_min)
        geometric = np.log(np.maximum(sigma, last) / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)
        return geometric * np.minimum(sigma / last, 1.0)

    def rates(self, t: float) -> tuple[float, float]:
        slope = math.log(self.sigma_max / self.sigma_min) if t > self.t_min else 1 / self.t_min
        return 0.0, float(self.sigma(max(t, self.t_min))) * slope
