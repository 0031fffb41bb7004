"""The schedule whose log signal-to-noise ratio is that of a cosine, between two ends."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from fastdiff.arguments import number
from fastdiff.errors import expect
from fastdiff.process.schedules.base import Float64Array, inner_time
from fastdiff.process.schedules.vp import VariancePreserving


class CosineLogSNR(VariancePreserving):
    """alpha = cos(a t + b), sigma = sin(a t + b), t in (0, 1], so that the log SNR goes from logsnr_max at 0 to
    logsnr_min at 1 (Salimans & Ho 2022, Progressive Distillation, Appendix). t = 0 itself is the data.

    The network receives the log SNR. Raises ValueError unless logsnr_min < logsnr_max.
    """

    name = "cosine-logsnr"

    def __init__(self, logsnr_min: float = -20.0, logsnr_max: float = 20.0, *, t_min: float = 1e-3) -> None:
        logsnr_min, logsnr_max = number("logsnr_min", logsnr_min), number("logsnr_max", logsnr_max)
        expect(logsnr_min < logsnr_max, f"logsnr_min must be below logsnr_max, got {logsnr_min!r}, {logsnr_max!r}")
        self.logsnr_min, self.logsnr_max = logsnr_min, logsnr_max
        self._b = math.atan(math.exp(-0.5 * logsnr_max))
        self._a = math.atan(math.exp(-0.5 * logsnr_min)) - self._b
        self.t_min, self.t_max = inner_time(t_min), 1.0

    def _angle(self, t: ArrayLike) -> Float64Array:
        t = np.asarray(t, dtype=np.float64)
        return np.where(t > 0, self._a * t + self._b, 0.0)

    def log_alpha(self, t: ArrayLike) -> Float64Array:
        angle = self._angle(t)
        near = np.minimum(np.sin(angle) ** 2, 0.5)  # where the cosine would round to 1
        return np.where(near < 0.5, 0.5 * np.log1p(-near), np.log(np.cos(angle)))

    def sigma(self, t: ArrayLike) -> Float64Array:
        return np.sin(self._angle(t))

    def t_of_log_alpha(self, log_alpha: ArrayLike) -> Float64Array:
        log_alpha = np.asarray(log_alpha, dtype=np.float64)
        angle = np.arctan2(np.sqrt(-np.expm1(2 * log_alpha)), np.exp(log_alpha))
        return np.clip((angle - self._b) / self._a, 0.0, 1.0)

    def t_of_lam(self, lam: ArrayLike) -> Float64Array:
        angle = np.arctan(np.exp(-np.asarray(lam, dtype=np.float64)))
        return np.clip((angle - self._b) / self._a, 0.0, 1.0)

    def log_alpha_rate(self, t: float) -> float:
        return -self._a * math.tan(float(self._angle(t)))

    def model_time(self, t: float) -> float:
        return 2 * float(self.lam(t))
