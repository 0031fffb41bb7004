"""Variance-preserving schedules, where alpha^2 + sigma^2 = 1, and the sub-variance-preserving one."""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
from numpy.typing import ArrayLike

from fastdiff.arguments import described, number, whole
from fastdiff.errors import expect
from fastdiff.process.schedules.base import Float64Array, Schedule, inner_time


class VariancePreserving(Schedule):
    """alpha^2 + sigma^2 = 1, so that log_alpha and its inverse determine everything."""

    @abstractmethod
    def t_of_log_alpha(self, log_alpha: ArrayLike) -> Float64Array:
        """The inverse of `log_alpha`."""

    @abstractmethod
    def log_alpha_rate(self, t: float) -> float:
        """d log alpha / dt; from the left where it jumps."""

    def rates(self, t: float) -> tuple[float, float]:
        p, rate = self.point(t), self.log_alpha_rate(t)
        # sigma^2 = 1 - alpha^2, so that sigma' = -alpha alpha' / sigma.
        return p.alpha * rate, -(p.alpha**2) * rate / p.sigma if p.sigma > 0 else math.inf

    def sigma(self, t: ArrayLike) -> Float64Array:
        return np.sqrt(-np.expm1(2 * self.log_alpha(t)))

    def prior_std(self, t: float) -> float:
        return 1.0

    def t_of_lam(self, lam: ArrayLike) -> Float64Array:
        # alpha^2 = sigmoid(2 lambda), and log sigmoid(x) = -logaddexp(0, -x) does not overflow.
        return self.t_of_log_alpha(-0.5 * np.logaddexp(0.0, -2 * np.asarray(lam, dtype=np.float64)))


class VPDiscrete(VariancePreserving):
    """The discrete-time variance-preserving process of DDPM (Ho et al. 2020, Eq. 4) for any betas.

    betas: (N,) in (0, 1), the variance added at step n = 0 .. N-1. Continuous time is t = (n + 1) / N, and between the
    steps log alpha is linear in t, from log alpha = 0 at the data (Lu et al. 2022, DPM-Solver, Appendix D.4). The
    network receives n = N t - 1.

    The last beta may be 1: alpha is then 0 at t = 1, a zero terminal SNR, and linear in t in the last interval. Such a
    network predicts v or x0, since the noise alone says nothing of the data there; the customary grid is "trailing"
    (Lin et al. 2024, Common Diffusion Noise Schedules, Sections 3.1 to 3.3). Raises ValueError for other betas.
    """

    def __init__(self, betas: ArrayLike, *, name: str = "vp-discrete") -> None:
        try:
            betas = np.asarray(betas, dtype=np.float64)
        except (TypeError, ValueError):
            raise TypeError(f"betas must be a vector of numbers, got {described(betas)}") from None
        expect(betas.ndim == 1 and betas.size > 0, f"betas must be a vector, got shape {betas.shape}")
        inside = (betas > 0) & (betas < 1)
        good = bool(inside[:-1].all()) and 0 < betas[-1] <= 1
        expect(good, "betas must lie strictly between 0 and 1, but for the last one, which may be 1")
        self.name = name
        self.betas = betas
        self.num_steps = betas.size
        self.t_min, self.t_max = 1.0 / self.num_steps, 1.0
        self._knot_t = np.arange(self.num_steps + 1) / self.num_steps
        with np.errstate(divide="ignore"):
            self._knot_log_alpha = np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-betas))])
        self.zero_terminal = bool(betas[-1] == 1)
        if self.zero_terminal:
            self.grid = "trailing"

    def __repr__(self) -> str:
        betas = f"{self.num_steps} from {self.betas[0]:g} to {self.betas[-1]:g}"
        return f"{type(self).__name__}(betas={betas}, name={self.name!r})"

    @classmethod
    def linear(cls, num_steps: int = 1000, *, start: float = 1e-4, end: float = 0.02) -> VPDiscrete:
        """Linear betas (Ho et al. 2020, Section 4)."""
        start, end = number("start", start), number("end", end)
        return cls(np.linspace(start, end, whole("num_steps", num_steps, 1)), name="linear")

    @classmethod
    def scaled_linear(cls, num_steps: int = 1000, *, start: float = 0.00085, end: float = 0.012) -> VPDiscrete:
        """Betas linear in their square root (Rombach et al. 2022, latent diffusion and Stable Diffusion)."""
        first, last = (math.sqrt(number(name, beta)) for name, beta in (("start", start), ("end", end)))
        return cls(np.linspace(first, last, whole("num_steps", num_steps, 1)) ** 2, name="scaled-linear")

    @classmethod
    def cosine(cls, num_steps: int = 1000, *, s: float = 0.008, max_beta: float = 0.999) -> VPDiscrete:
        """Squared-cosine alpha_bar (Nichol & Dhariwal 2021, Eq. 17), betas clipped at `max_beta`."""
        num_steps, s, max_beta = whole("num_steps", num_steps, 1), number("s", s), number("max_beta", max_beta)
        u = np.arange(num_steps + 1) / num_steps
        alpha_bar = np.cos((u + s) / (1 + s) * math.pi / 2) ** 2
        return cls(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta), name="cosine")

    def with_zero_terminal_snr(self) -> VPDiscrete:
        """The same with sqrt(alpha_bar) shifted and scaled to end at 0 and begin where it did (Lin et al. 2024,
        Algorithm 1)."""
        root = np.exp(self._knot_log_alpha[1:])
        root = np.concatenate([[1.0], (root - root[-1]) * root[0] / (root[0] - root[-1])])
        return VPDiscrete(1 - (root[1:] / root[:-1]) ** 2, name=f"{self.name}-zero-snr")

    def log_alpha(self, t: ArrayLike) -> Float64Array:
        t = np.asarray(t, dtype=np.float64)
        if not self.zero_terminal:
            return np.asarray(np.interp(t, self._knot_t, self._knot_log_alpha))
        left = self.num_steps * (1.0 - t)  # of the last interval
        with np.errstate(divide="ignore"):
            last = self._knot_log_alpha[-2] + np.log(np.clip(left, 0.0, 1.0))
        before = np.interp(t, self._knot_t[:-1], self._knot_log_alpha[:-1])
        return np.asarray(np.where(t > self._knot_t[-2], last, before))

    def t_of_log_alpha(self, log_alpha: ArrayLike) -> Float64Array:
        log_alpha = np.asarray(log_alpha, dtype=np.float64)
        if not self.zero_terminal:
            return np.asarray(np.interp(log_alpha, self._knot_log_alpha[::-1], self._knot_t[::-1]))
        below = np.minimum(log_alpha - self._knot_log_alpha[-2], 0.0)
        before = np.interp(log_alpha, self._knot_log_alpha[-2::-1], self._knot_t[-2::-1])
        return np.asarray(np.where(below < 0, 1.0 - np.exp(below) / self.num_steps, before))

    def rates(self, t: float) -> tuple[float, float]:
        if not self.zero_terminal or t <= self._knot_t[-2]:
            return super().rates(t)
        p, d_alpha = self.point(t), -self.num_steps * float(np.exp(self._knot_log_alpha[-2]))
        return d_alpha, -p.alpha * d_alpha / p.sigma

    def log_alpha_rate(self, t: float) -> float:
        if self.zero_terminal and t > self._knot_t[-2]:
            return -1 / (1 - t) if t < 1 else -math.inf
        index = max(1, int(np.searchsorted(self._knot_t, t)))
        return float(self._knot_log_alpha[index] - self._knot_log_alpha[index - 1]) * self.num_steps

    def model_time(self, t: float) -> float:
        return self.num_steps * t - 1.0


class _LinearBeta(Schedule):
    """beta(t) linear in t: log alpha(t) = -t^2 (beta_1 - beta_0) / 4 - t beta_0 / 2 on t in (0, 1]."""

    def __init__(self, beta_0: float = 0.1, beta_1: float = 20.0, *, t_min: float = 1e-3) -> None:
        beta_0, beta_1 = number("beta_0", beta_0), number("beta_1", beta_1)
        expect(0 < beta_0 < beta_1, f"0 < beta_0 < beta_1 must hold, got beta_0={beta_0!r}, beta_1={beta_1!r}")
        self.beta_0, self.beta_1 = beta_0, beta_1
        self.t_min, self.t_max = inner_time(t_min), 1.0

    def log_alpha(self, t: ArrayLike) -> Float64Array:
        t = np.asarray(t, dtype=np.float64)
        return -(t**2) * (self.beta_1 - self.beta_0) / 4 - t * self.beta_0 / 2

    def t_of_log_alpha(self, log_alpha: ArrayLike) -> Float64Array:
        """The inverse of `log_alpha`."""
        # The root of a quadratic in the form without cancellation: t = 2c / (b + sqrt(b^2 + 4ac)).
        c = -np.asarray(log_alpha, dtype=np.float64)
        a, b = (self.beta_1 - self.beta_0) / 4, self.beta_0 / 2
        return 2 * c / (b + np.sqrt(b**2 + 4 * a * c))

    def log_alpha_rate(self, t: float) -> float:
        """-beta(t) / 2."""
        return -0.5 * (self.beta_0 + t * (self.beta_1 - self.beta_0))


class VPLinear(_LinearBeta, VariancePreserving):
    """The continuous variance-preserving SDE with beta(t) linear in t (Song et al. 2021, Score SDE, Eq. 33).

    The network receives t.
    """

    name = "vp-linear"


class SubVP(_LinearBeta):
    """The sub-variance-preserving SDE (Song et al. 2021, Score SDE, Eq. 14 and 29): alpha of VPLinear, sigma = 1 -
    alpha^2.

    The network receives t.
    """

    name = "sub-vp"

    def sigma(self, t: ArrayLike) -> Float64Array:
        return -np.expm1(2 * self.log_alpha(t))

    def t_of_lam(self, lam: ArrayLike) -> Float64Array:
        # alpha = (1 - alpha^2) r with r = e^lam: 1 / alpha = 1 / (2 r) + sqrt(1 / (4 r^2) + 1), the square root without
        # overflow.
        half = 0.5 * np.exp(-np.asarray(lam, dtype=np.float64))
        return self.t_of_log_alpha(-np.log(half + np.hypot(half, 1.0)))

    def prior_std(self, t: float) -> float:
        return 1.0

    def rates(self, t: float) -> tuple[float, float]:
        p, rate = self.point(t), self.log_alpha_rate(t)
        return p.alpha * rate, -2 * p.alpha**2 * rate
