"""The forward process as training sees it: random times, what the network gets there, what it should return."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastdiff.errors import expect, unknown
from fastdiff.process.prediction import Prediction, get_prediction
from fastdiff.process.schedules import EDM, SCHEDULES, Point, Schedule, VPDiscrete


@dataclass(frozen=True)
class Process:
    """A schedule and what the network predicts on it, so that training, sampling and export mean the same.

    schedule, prediction: as for `fastdiff.sample`, by name too. Raises ValueError for unknown names, for a prediction
    with a learned variance ("eps+variance"), and for EDM's schedule, whose times are not uniform.
    """

    schedule: Schedule
    prediction: Prediction

    def __post_init__(self) -> None:
        expect(
            not self.prediction.split,
            f"prediction {self.prediction.name!r} learns a variance, for which there is no loss; train 'eps'",
        )
        expect(not isinstance(self.schedule, EDM), "schedule 'edm' has no uniform time to train on; use 've'")

    @classmethod
    def of(cls, schedule: str | Schedule, prediction: str | Prediction) -> Process:
        """From names in `fastdiff.schedules.SCHEDULES` and of a prediction, or from the objects."""
        if isinstance(schedule, str):
            if schedule not in SCHEDULES:
                raise unknown("schedule", schedule, SCHEDULES)
            schedule = SCHEDULES[schedule]()
        return cls(schedule, get_prediction(prediction))

    def points(self, count: int, generator: torch.Generator) -> list[Point]:
        """Random times, one in each of `count` equal parts of [t_min, t_max): uniform, or the steps of a discrete
        schedule."""
        u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        schedule = self.schedule
        if isinstance(schedule, VPDiscrete):
            n = (u * schedule.num_steps).long().clamp_(max=schedule.num_steps - 1).numpy()
            return schedule.points((n + 1) / schedule.num_steps)
        times = schedule.t_min + u.double().numpy() * (schedule.t_max - schedule.t_min)
        return schedule.points(np.minimum(times, np.nextafter(schedule.t_max, 0)))

    def inputs(self, x0: Tensor, eps: Tensor, points: list[Point]) -> tuple[Tensor, Tensor]:
        """(x, t) as the network receives them: (B, ...) and (B,), from data and noise (B, ...)."""
        scales = [self.prediction.scale(p) for p in points]
        x = _combined(x0, eps, [(s * p.alpha, s * p.sigma) for s, p in zip(scales, points)])
        return x, torch.tensor([self.prediction.time(self.schedule, p) for p in points]).to(x0)

    def target(self, x0: Tensor, eps: Tensor, points: list[Point]) -> Tensor:
        """(B, ...): what the network should return."""
        return _combined(x0, eps, [self.prediction.target(p) for p in points])


def _combined(x0: Tensor, eps: Tensor, coefficients: list[tuple[float, float]]) -> Tensor:
    """a x0 + b eps, (a, b) for each sample."""
    a, b = torch.tensor(coefficients, dtype=torch.float64).to(x0).view(len(x0), 2, *[1] * (x0.ndim - 1)).unbind(1)
    return a * x0 + b * eps
