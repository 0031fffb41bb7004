"""The forward process as training sees it: random times, what the network gets there, what it should return."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff.arguments import described
from fastdiff.errors import expect, unknown
from fastdiff.process.prediction import Prediction, get_prediction
from fastdiff.process.schedules import EDM, SCHEDULES, Point, Schedule, VPDiscrete


@dataclass(frozen=True)
class Process:
    """A schedule and what the network predicts on it, so that training, sampling and export mean the same.

    schedule, prediction: as for `fastdiff.sample`, by name too. Raises ValueError for unknown names.
    """

    schedule: Schedule
    prediction: Prediction

    def __post_init__(self) -> None:
        for name, kind in (("schedule", Schedule), ("prediction", Prediction)):
            if not isinstance(given := getattr(self, name), kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {described(given)}; Process.of takes names")

    def expect_uniform(self) -> None:
        """Raises ValueError for EDM's schedule, whose times are not uniform."""
        expect(
            not isinstance(self.schedule, EDM),
            "schedule 'edm' has no uniform time to train on; use 've', or fastdiff.train.losses.edm_loss",
        )

    def expect_single(self) -> None:
        """Raises ValueError for a prediction with a learned variance ("eps+variance"), which plain errors leave out."""
        expect(
            not self.prediction.split,
            f"prediction {self.prediction.name!r} learns a variance, for which there is no loss here; train 'eps', or "
            "use fastdiff.train.losses.ddpm_loss",
        )

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
        schedule. Raises ValueError for EDM's schedule."""
        self.expect_uniform()
        u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        schedule = self.schedule
        if isinstance(schedule, VPDiscrete):
            n = (u * schedule.num_steps).long().clamp_(max=schedule.num_steps - 1).numpy()
            return schedule.points((n + 1) / schedule.num_steps)
        times = schedule.t_min + u.double().numpy() * (schedule.t_max - schedule.t_min)
        return schedule.points(np.minimum(times, np.nextafter(schedule.t_max, 0)))

    def at(self, times: ArrayLike | Tensor) -> list[Point]:
        """The points of given times of the schedule, (B,); of EDM's, whose times are noise levels, any level."""
        try:
            t = np.atleast_1d(np.asarray(times, dtype=np.float64))
        except (TypeError, ValueError):
            raise TypeError(f"times must be numbers, one a sample, got {described(times)}") from None
        if isinstance(self.schedule, EDM):
            expect(bool((t > 0).all()), f"noise levels must be positive, got {t.tolist()}")
            return [Point(s, 1.0, s, -log(s)) for s in t.tolist()]
        return self.schedule.points(t)

    def inputs(self, x0: Tensor, eps: Tensor, points: list[Point]) -> tuple[Tensor, Tensor]:
        """(x, t) as the network receives them: (B, ...) and (B,), from data and noise (B, ...)."""
        scales = [self.prediction.scale(p) for p in points]
        x = _combined(x0, eps, [(s * p.alpha, s * p.sigma) for s, p in zip(scales, points)])
        times = [self.prediction.time(self.schedule, p) for p in points]
        return x, torch.tensor(times, dtype=torch.float64).to(x0)

    def target(self, x0: Tensor, eps: Tensor, points: list[Point]) -> Tensor:
        """(B, ...): what the network should return."""
        return _combined(x0, eps, [self.prediction.target(p) for p in points])


def _combined(x0: Tensor, eps: Tensor, coefficients: list[tuple[float, float]]) -> Tensor:
    """a x0 + b eps, (a, b) for each sample."""
    expect(len(coefficients) == len(x0), f"times must be one a sample ({len(x0)}), got {len(coefficients)}")
    a, b = torch.tensor(coefficients, dtype=torch.float64).to(x0).view(len(x0), 2, *[1] * (x0.ndim - 1)).unbind(1)
    return a * x0 + b * eps
