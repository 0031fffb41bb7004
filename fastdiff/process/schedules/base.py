"""Noise schedules: alpha(t), sigma(t), the half log-SNR lambda(t) = log(alpha / sigma), and their inverses.

A schedule describes the marginals x_t = alpha(t) x_0 + sigma(t) eps of a forward process (Kingma et al. 2021,
Variational Diffusion Models, Eq. 1). All of it is NumPy in float64: schedules are evaluated a few dozen times when a
Program is built, never inside the sampling loop.

Time `t` is continuous, and t = 0 is the data itself (alpha = 1, sigma = 0, lambda = inf). `model_time(t)` is the
number the network receives as its time argument, in the units that it was trained with.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastdiff.arguments import described
from fastdiff.errors import expect, unknown

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
        expect(outside.size == 0, f"t must lie in [0, {self.t_max:g}], got {outside.tolist()}")
        return [Point(*p) for p in zip(*(a.tolist() for a in (t, self.alpha(t), self.sigma(t), self.lam(t))))]


@lru_cache(maxsize=4096)
def _point(schedule: Schedule, t: float) -> Point:
    """A point on its own, as stages between two points of a grid ask for it; several of them for the same."""
    return schedule.points([t])[0]


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
        betas = np.asarray(betas, dtype=np.float64)
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
        return cls(np.linspace(start, end, num_steps), name="linear")

    @classmethod
    def scaled_linear(cls, num_steps: int = 1000, *, start: float = 0.00085, end: float = 0.012) -> VPDiscrete:
        """Betas linear in their square root (Rombach et al. 2022, latent diffusion and Stable Diffusion)."""
        return cls(np.linspace(math.sqrt(start), math.sqrt(end), num_steps) ** 2, name="scaled-linear")

    @classmethod
    def cosine(cls, num_steps: int = 1000, *, s: float = 0.008, max_beta: float = 0.999) -> VPDiscrete:
        """Squared-cosine alpha_bar (Nichol & Dhariwal 2021, Eq. 17), betas clipped at `max_beta`."""
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
        expect(0 < beta_0 < beta_1, f"0 < beta_0 < beta_1 must hold, got beta_0={beta_0!r}, beta_1={beta_1!r}")
        expect(0 < t_min < 1, f"t_min must lie in (0, 1), got {t_min!r}")
        self.beta_0, self.beta_1 = beta_0, beta_1
        self.t_min, self.t_max = t_min, 1.0

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


class _Exploding(Schedule):
    """alpha = 1; sigma_min, sigma_max: the noise levels the network was trained on. The network receives sigma."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
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
        self.t_min, self.t_max = sigma_min, sigma_max

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
        expect(0 < t_min < 1, f"t_min must lie in (0, 1), got {t_min!r}")
        self.t_min, self.t_max = t_min, 1.0

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


class RectifiedFlow(Schedule):
    """The straight path from data to noise: alpha = 1 - t, sigma = t (Liu et al. 2023, Rectified Flow; Lipman et al.
    2023, Flow Matching).

    shift: of its customary grid, "shifted" (Esser et al. 2024, Stable Diffusion 3, Eq. 23). time_scale: the network
    receives time_scale t (1000 for Stable Diffusion 3, 1 for Flux). Raises ValueError for a shift that is not positive.
    """

    name = "rectified-flow"
    grid = "shifted"

    def __init__(self, shift: float = 1.0, *, time_scale: float = 1.0, t_min: float = 1e-3) -> None:
        expect(0 < shift < math.inf, f"shift must be positive and finite, got {shift!r}")
        expect(0 < t_min < 1, f"t_min must lie in (0, 1), got {t_min!r}")
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


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "linear": VPDiscrete.linear,
    "scaled-linear": VPDiscrete.scaled_linear,
    "cosine": VPDiscrete.cosine,
    "vp-linear": VPLinear,
    "sub-vp": SubVP,
    "ve": VE,
    "edm": EDM,
    "rectified-flow": RectifiedFlow,
}


def get_schedule(schedule: Schedule | str | None) -> Schedule:
    """The schedule of that name. Raises ValueError that lists the near names, TypeError for what is no schedule."""
    expect(schedule is not None, "schedule must be given: this model does not say on which one it was trained")
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise unknown("schedule", schedule, SCHEDULES)
        return SCHEDULES[schedule]()
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be a fastdiff Schedule or a name, got {described(schedule)}")
    return schedule
