"""What a network's output means: each prediction type as x0 and eps, linear in the state and the output.

With x = alpha x0 + sigma eps, every type is an affine view of the same quantity; a solver asks for x0 or eps and gets
it as `a x + b out` whatever the network was trained to predict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import log, sqrt

from fastdiff.arguments import described
from fastdiff.errors import expect, unknown
from fastdiff.process.schedules import Point, Schedule

Coefficients = tuple[float, float]


@dataclass(frozen=True, repr=False)
class Prediction:
    """A prediction type. x0(point) and eps(point) return (a, b) with x0 = a x + b out, eps = a x + b out.

    source: paper and equation. scale(point): the network receives scale x. noise_time(point): the time that it
    receives, where that is not the schedule's. split: it returns twice the state's channels, the prediction and what it
    has learned of the variance.
    """

    name: str
    x0: Callable[[Point], Coefficients]
    eps: Callable[[Point], Coefficients]
    source: str
    scale: Callable[[Point], float] = lambda p: 1.0
    noise_time: Callable[[Point], float] | None = None
    split: bool = False

    def __repr__(self) -> str:
        return f"Prediction({self.name!r})"

    def time(self, schedule: Schedule, p: Point) -> float:
        """The time argument of the network."""
        return schedule.model_time(p.t) if self.noise_time is None else self.noise_time(p)

    def silent(self, p: Point) -> str | None:
        """Why the output says nothing of x0 at a point where alpha is 0, or None."""
        try:
            self.x0(p)
        except ZeroDivisionError:
            if p.alpha == 0:
                return (
                    f"prediction {self.name!r} says nothing of the data at t={p.t:g}, where alpha is 0 (a zero "
                    "terminal SNR): the network must predict 'v', 'x0' or 'flow', or the run begin later"
                )
        return None

    def target(self, p: Point) -> Coefficients:
        """(a, b): at x = alpha x0 + sigma eps the network should return a x0 + b eps."""
        (x0_x, x0_out), (eps_x, eps_out) = self.x0(p), self.eps(p)
        if abs(x0_out) >= abs(eps_out):  # solved for the output where it counts more
            return (1 - x0_x * p.alpha) / x0_out, -x0_x * p.sigma / x0_out
        return -eps_x * p.alpha / eps_out, (1 - eps_x * p.sigma) / eps_out


def _norm(p: Point) -> float:
    """alpha^2 + sigma^2: 1 for a variance-preserving schedule."""
    return p.alpha**2 + p.sigma**2


_EPS = Prediction(
    "eps",
    x0=lambda p: (1 / p.alpha, -p.sigma / p.alpha),
    eps=lambda p: (0.0, 1.0),
    source="Ho et al. 2020, DDPM, Eq. 11",
)


@cache
def edm_preconditioned(sigma_data: float = 0.5) -> Prediction:
    """The raw network F of EDM: x0 = c_skip y + c_out F(c_in y, ln(rho) / 4) with y = x / alpha, rho = sigma / alpha.

    sigma_data: standard deviation of the data that it was trained on. Source: Karras et al. 2022, EDM, Eq. 7, Table 1.
    """
    expect(sigma_data > 0, f"sigma_data must be positive, got {sigma_data!r}")

    def total(p: Point) -> float:
        return (p.sigma / p.alpha) ** 2 + sigma_data**2

    def x0(p: Point) -> Coefficients:
        return sigma_data**2 / total(p) / p.alpha, p.sigma / p.alpha * sigma_data / sqrt(total(p))

    def eps(p: Point) -> Coefficients:  # (y - x0) / rho, in the form without cancellation
        return p.sigma / p.alpha / total(p) / p.alpha, -sigma_data / sqrt(total(p))

    return Prediction(
        "edm",
        x0=x0,
        eps=eps,
        source="Karras et al. 2022, EDM, Eq. 7",
        scale=lambda p: 1 / (p.alpha * sqrt(total(p))),
        noise_time=lambda p: log(p.sigma / p.alpha) / 4,
    )


@cache
def of_noise_level(power: float = 1.0) -> Prediction:
    """The noise, by a network that receives alpha to this power in place of a time: 1 for SR3's square root of the
    cumulative product (Saharia et al. 2021, Section 2.3; Chen et al. 2021, WaveGrad), 2 for Palette's product."""
    return replace(
        _EPS,
        name=f"eps of alpha^{power:g}",
        noise_time=lambda p: p.alpha**power,
        source="Saharia et al. 2021, SR3, Eq. 6",
    )


PREDICTIONS = {
    prediction.name: prediction
    for prediction in (
        _EPS,
        Prediction(
            "x0",
            x0=lambda p: (0.0, 1.0),
            eps=lambda p: (1 / p.sigma, -p.alpha / p.sigma),
            source="Ho et al. 2020, DDPM, Section 3.2",
        ),
        Prediction(
            "v",  # v = alpha eps - sigma x0
            x0=lambda p: (p.alpha / _norm(p), -p.sigma / _norm(p)),
            eps=lambda p: (p.sigma / _norm(p), p.alpha / _norm(p)),
            source="Salimans & Ho 2022, Progressive Distillation, Section 4",
        ),
        Prediction(
            "score",  # -eps / sigma
            x0=lambda p: (1 / p.alpha, p.sigma**2 / p.alpha),
            eps=lambda p: (0.0, -p.sigma),
            source="Song et al. 2021, Score SDE, Eq. 7",
        ),
        Prediction(
            "flow",  # eps - x0; no division by alpha or sigma, which are 0 at the ends
            x0=lambda p: (1 / (p.alpha + p.sigma), -p.sigma / (p.alpha + p.sigma)),
            eps=lambda p: (1 / (p.alpha + p.sigma), p.alpha / (p.alpha + p.sigma)),
            source="Liu et al. 2023, Rectified Flow, Eq. 1; Lipman et al. 2023, Flow Matching, Eq. 23",
        ),
        replace(_EPS, name="eps+variance", split=True, source="Nichol & Dhariwal 2021, Improved DDPM, Eq. 15"),
        edm_preconditioned(),
    )
}


def get_prediction(prediction: str | Prediction) -> Prediction:
    """The prediction type of that name. Raises ValueError that lists the near names."""
    if isinstance(prediction, Prediction):
        return prediction
    if not isinstance(prediction, str):
        raise TypeError(f"prediction must be a name or a fastdiff Prediction, got {described(prediction)}")
    if prediction not in PREDICTIONS:
        raise unknown("prediction", prediction, PREDICTIONS)
    return PREDICTIONS[prediction]
