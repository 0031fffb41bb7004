"""What a golden case becomes: the arguments of `fastdiff.sample`, and the exact model of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from folder import FOLDER, cases
from torch import Tensor

from fastdiff import Classifier
from fastdiff.prediction import Prediction, get_prediction
from fastdiff.schedules import Point, Schedule
from fastdiff.solvers import Solver

CASES = cases("solvers")
ARRAYS = np.load(FOLDER / "solvers.npz") if CASES else {}
FLOAT32_TABLES = 1e-5  # originals whose coefficient tables are float32
FLOAT64 = 1e-8


@dataclass
class Case:
    """The arguments of `fastdiff.sample` for a case. times: the grid. tolerance: of the README beside the data.

    data_schedule: that of the exact model, where the solver's is a rounded one. scale: of x_init. time_of: from the
    network's time to the schedule's; the identity unless given. variance: of x and t, the second half of the network's
    output. arguments: further ones of `fastdiff.sample`. split_noise: how a row of the stored noises is handed to the
    solver.
    """

    solver: Solver
    schedule: Schedule
    times: Any
    prediction: str | Prediction
    tolerance: float = FLOAT64
    scale: float = 1.0
    time_of: Callable[[float], float] = lambda t: t
    variance: Callable[[Tensor], Tensor] | None = None
    classifier: tuple[int, float] | None = None
    data_schedule: Schedule | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def point(self, time: float) -> Point:
        """Where the network is when it is given this time."""
        return (self.data_schedule or self.schedule).point(self.time_of(time))


class Mixture:
    """Isotropic Gaussians in D dimensions: the exact denoiser of the golden cases."""

    def __init__(self) -> None:
        self.means, self.stds, self.weights = (
            torch.from_numpy(ARRAYS[f"gmm/{k}"]) for k in ("means", "stds", "weights")
        )

    def logits(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """log w_k N(x; alpha mu_k, v_k) but for a constant: (B, K) from (B, ...)."""
        x = x.reshape(len(x), -1)
        v = alpha**2 * self.stds**2 + sigma**2
        squares = (x[:, None] - alpha * self.means).square().sum(-1)
        return self.weights.log() - squares / (2 * v) - x.shape[1] / 2 * v.log()

    def x0(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x0 | x]."""
        v = alpha**2 * self.stds**2 + sigma**2
        centred = x.reshape(len(x), 1, -1) - alpha * self.means
        means = self.means + (alpha * self.stds**2 / v)[:, None] * centred
        return (self.logits(x, alpha, sigma).softmax(1)[..., None] * means).sum(1).reshape(x.shape)

    def network(self, case: Case, calls: list[float]) -> Callable[..., Tensor]:
        """model(x, t) for the case; the network's times are appended to `calls`."""

        def model(x: Tensor, t: Tensor) -> Tensor:
            calls.append(float(t[0]))
            p = case.point(float(t[0]))
            x0 = self.x0(x, p.alpha, p.sigma)
            eps = (x - p.alpha * x0) / p.sigma
            views = {"x0": x0, "eps": eps, "eps+variance": eps, "score": -eps / p.sigma}
            out = views[get_prediction(case.prediction).name]
            return out if case.variance is None else torch.cat([out, case.variance(x)], 1)

        return model

    def classifier(self, case: Case, calls: list[float]) -> Classifier:
        """That of the case's component: the gradient of the logarithm of its responsibility."""
        assert case.classifier is not None
        component, scale = case.classifier

        def gradient(x: Tensor, t: Tensor) -> Tensor:
            calls.append(float(t[0]))
            p = case.point(float(t[0]))
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                log_r = self.logits(x, p.alpha, p.sigma).log_softmax(1)[:, component]
                return torch.autograd.grad(log_r.sum(), x)[0]

        return Classifier(gradient, scale)
