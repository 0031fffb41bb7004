"""What a network's output means: each prediction type as x0 and eps, linear in the state and the output.

With x = alpha x0 + sigma eps, every type is an affine view of the same quantity; a solver asks for x0 or eps and gets
it as `a x + b out` whatever the network was trained to predict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastdiff.errors import unknown
from fastdiff.schedules import Point

Coefficients = tuple[float, float]


@dataclass(frozen=True)
class Prediction:
    """A prediction type. x0(point) and eps(point) return (a, b) with x0 = a x + b out, eps = a x + b out.

    source: paper and equation.
    """

    name: str
    x0: Callable[[Point], Coefficients]
    eps: Callable[[Point], Coefficients]
    source: str


def _norm(p: Point) -> float:
    """alpha^2 + sigma^2: 1 for a variance-preserving schedule."""
    return p.alpha**2 + p.sigma**2


PREDICTIONS = {
    prediction.name: prediction
    for prediction in (
        Prediction(
            "eps",
            x0=lambda p: (1 / p.alpha, -p.sigma / p.alpha),
            eps=lambda p: (0.0, 1.0),
            source="Ho et al. 2020, DDPM, Eq. 11",
        ),
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
    )
}


def get_prediction(prediction: str | Prediction) -> Prediction:
    """The prediction type of that name. Raises ValueError that lists the near names."""
    if isinstance(prediction, Prediction):
        return prediction
    if prediction not in PREDICTIONS:
        raise unknown("prediction", prediction, PREDICTIONS)
    return PREDICTIONS[prediction]
