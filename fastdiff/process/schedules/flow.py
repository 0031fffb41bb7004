"""The schedule of rectified flows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from fastdiff.arguments import number
from fastdiff.errors import expect
from fastdiff.process.schedules.base import Float64Array, Schedule, inner_time


class RectifiedFlow(Schedule):
    """The straight path from data to noise: alpha = 1 - t, sigma = t (Liu et al. 2023, Rectified Flow; Lipman et al.
    2023, Flow Matching).

    shift: of its customary grid, "shifted" (Esser et al. 2024, Stable Diffusion 3, Eq. 23). time_scale: the network
    receives time_scale t (1000 for Stable Diffusion 3, 1 for Flux). Raises ValueError for a shift that is not positive.
    """

    name = "rectified-flow"
    grid = "shifted"

    def __init__(self, shift: float = 1.0, *, time_scale: float = 1.0, t_min: float = 1e-3) -> None:
        shift, time_scale, t_min = number("shift", shift), number("time_scale", time_scale), inner_time(t_min)
        expect(shift > 0, f"shift must be positive and finite, got {shift!r}")
        self.shift, self.time_scale = shift, time_scale
        self.t_min, self.t_max = t_min, 1.0

    @classmethod
    def for_resolution(cls, pixels: int, trained_pixels: int, *, time_scale: float = 1.0) -> RectifiedFlow:
        """The shift that gives an image of `pixels` the uncertainty that one of `trained_pixels` has at the same t: the
        square root of their ratio (Esser et al. 2024, Eq. 23)."""
        return cls(math.sqrt(pixels / trained_pixels), time_scale=time_scale)

    def log_alpha(self, t: ArrayLike) -> Float64Array:
        with np.errstate(divide="ignore"):
            return np.log1p(-np.asarray(t, dtype=np.float64))

    def sigma(self, t: ArrayLike) -> Float64Array:
        return np.asarray(t, dtype=np.float64)

    def t_of_lam(self, lam: ArrayLike) -> Float64Array:
        return np.exp(-np.logaddexp(0.0, np.asarray(lam, dtype=np.float64)))  # 1 / (1 + e^lam)

    def rates(self, t: float) -> tuple[float, float]:
        return -1.0, 1.0

    def model_time(self, t: float) -> float:
        return self.time_scale * t
