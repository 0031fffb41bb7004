"""Analytic-DPM: Bao et al. 2022a, Analytic-DPM, and 2022b, Estimating the Optimal Covariance with Imperfect Mean.

The reverse step's optimal variance is that of the mean's step plus what the network's uncertainty about eps adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.errors import unknown
from fastdiff.process.noise import CounterNoise
from fastdiff.process.prediction import Prediction, get_prediction
from fastdiff.process.schedules import Point, Schedule
from fastdiff.program.transforms import transform
from fastdiff.solvers.ddim import ancestral_sigma
from fastdiff.solvers.registry import solver


@solver(order=1, grid="linspace", source="Bao et al. 2022, Analytic-DPM, Theorem 1; Estimating the Optimal Covariance")
def analytic_dpm(model, x, s, t, history, *, eta=1.0, eps_square=1.0, covariance="isotropic", noise):
    """The mean of DDIM with eta (1: of DDPM) and the optimal variance of the reverse step.

    covariance: "isotropic" takes E|eps(x)|^2 / d from `eps_square`: a number, or a sequence of (t, value) that is
    interpolated in lambda (see `estimate_eps_square`); 1 is a network that is sure of eps, and DDPM's small variance.
    "sn" and "npr" take it from a network with prediction "eps+variance" whose second half predicts eps^2 (2022b,
    Theorem 3.2) or (eps - eps_predicted)^2 (Theorem 4.1), a value a pixel.
    """
    if covariance not in ("isotropic", "sn", "npr"):
        raise unknown("covariance", covariance, ("isotropic", "sn", "npr"))
    base = (eta * ancestral_sigma(s, t)) ** 2
    along = sqrt(t.sigma**2 - base)
    gain = (s.sigma * t.alpha / s.alpha - along) ** 2  # how much of eps' uncertainty the step lets through
    if covariance == "isotropic":
        x0, eps = model.x0_eps(x, s)
        spread = sqrt(base + gain * max(0.0, 1 - _interpolate(eps_square, model.schedule, s))) if t.sigma > 0 else 0.0
        return t.alpha * x0 + along * eps + (spread * noise() if spread > 0 else 0)
    x0, eps, learned = model.x0_eps_variance(x, s)
    mean = t.alpha * x0 + along * eps
    if t.sigma == 0:
        return mean
    return mean + model.apply("learned_covariance", noise(), learned, eps, base=base, gain=gain, kind=covariance)


@transform
def learned_covariance(z: Tensor, learned: Tensor, eps: Tensor, *, base: float, gain: float, kind: str) -> Tensor:
    """Noise of variance base + gain r, r being what the network has learned of the uncertainty about eps."""
    uncertainty = learned - eps.square() if kind == "sn" else learned
    return z * (base + gain * uncertainty.clamp(min=0)).sqrt()


def _interpolate(eps_square: float | Sequence[tuple[float, float]], schedule: Schedule, s: Point) -> float:
    if isinstance(eps_square, (int, float)):
        return float(eps_square)
    times, values = np.asarray(sorted(eps_square), dtype=np.float64).T
    return float(np.interp(-s.lam, -schedule.lam(times), values))


@torch.no_grad()
def estimate_eps_square(
    model: Callable[..., Tensor],
    data: Tensor,
    *,
    schedule: Schedule,
    prediction: str | Prediction,
    times: Sequence[float],
    cond: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[tuple[float, float], ...]:
    """E|eps(x_t)|^2 / d of a network at each of the times, for the option `eps_square` of "analytic-dpm".

    data: (B, ...), a sample of what the network was trained on, in its dtype; cond: its arguments, (B, ...). The noise
    is drawn from the seed. Source: Bao et al. 2022a, Eq. 8. Returns (t, value) pairs.
    """
    kind = get_prediction(prediction)
    noise = CounterNoise.of(seed, len(data))
    result = []
    for number, p in enumerate(schedule.points(times)):
        z = noise.draw(number, data.shape, torch.float32).to(data)
        x = p.alpha * data + p.sigma * z
        out = model(kind.scale(p) * x, x.new_full((len(x),), kind.time(schedule, p)), **(cond or {}))
        if kind.split:
            out = out.chunk(2, dim=1)[0]
        a, b = kind.eps(p)
        result.append((p.t, float((a * x + b * out).double().square().mean())))
    return tuple(result)
