"""Gaussian data N(mean, std^2): the network and the solution of the probability-flow ODE in closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastdiff.prediction import get_prediction
from fastdiff.schedules import Schedule


class Gaussian:
    """The exact model for independent normal data, and what an exact solver makes of a starting state."""

    def __init__(self, schedule: Schedule, mean: float = 0.6, std: float = 0.3) -> None:
        self.schedule, self.mean, self.std = schedule, mean, std
        self.calls: list[float] = []

    def marginal_std(self, t: float) -> float:
        p = self.schedule.point(t)
        return (p.alpha**2 * self.std**2 + p.sigma**2) ** 0.5

    def x0(self, x: Tensor, t: float) -> Tensor:
        """E[x0 | x_t = x]."""
        p = self.schedule.point(t)
        gain = p.alpha * self.std**2 / self.marginal_std(t) ** 2
        return self.mean + gain * (x - p.alpha * self.mean)

    def network(self, prediction: str, time_of: Callable[[float], float]) -> Callable[..., Tensor]:
        """model(x, t) that predicts `prediction`; time_of maps the network's time back to the schedule's.

        The variance that a split prediction asks for is tanh(x).
        """
        kind = get_prediction(prediction)
        if kind.noise_time is not None:  # EDM's ln(sigma / alpha) / 4
            time_of = lambda time: float(self.schedule.t_of_lam(-4 * time))  # noqa: E731

        def model(x: Tensor, t: Tensor, **_) -> Tensor:
            assert t.shape == (len(x),)
            time = time_of(float(t[0]))
            self.calls.append(time)
            point = self.schedule.point(time)
            a, b = kind.x0(point)
            x = x / kind.scale(point)
            out = (self.x0(x, time) - a * x) / b
            return torch.cat([out, x.tanh()], 1) if kind.split else out

        return model

    def exact(self, x: Tensor, start: float, end: float) -> Tensor:
        """The probability-flow ODE keeps (x - alpha mean) / marginal_std constant."""
        s, t = self.schedule.point(start), self.schedule.point(end)
        return t.alpha * self.mean + self.marginal_std(end) / self.marginal_std(start) * (x - s.alpha * self.mean)


def correlated_eps(schedule: Schedule, correlation: float) -> Callable[..., Tensor]:
    """The exact model of two standard normals, (B, 2), for "eps" on a discrete schedule of 1000 steps."""
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)

    def model(x: Tensor, t: Tensor) -> Tensor:
        p = schedule.point((float(t[0]) + 1) / 1000)
        total = p.alpha**2 * covariance + p.sigma**2 * torch.eye(2, dtype=torch.float64)
        return p.sigma * x @ torch.linalg.inv(total)

    return model


def states(seed: int = 0, batch: int = 16) -> Tensor:
    return torch.randn(batch, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
