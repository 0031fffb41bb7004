"""The losses of Karras et al. 2022, Elucidating the Design Space (EDM), Table 1: its own, and those of VP and VE."""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt
from typing import Any

import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.errors import expect, one_of
from fastdiff.process.prediction import Coefficients, Prediction
from fastdiff.process.schedules import Point
from fastdiff.train.losses import weighting
from fastdiff.train.losses.denoising import denoising_loss
from fastdiff.train.process import Process
from fastdiff.train.terms import Network, times_of, uniform


def edm_levels(normal: Tensor, *, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """Noise levels exp(mean + std u) of standard normal u (EDM, Table 1)."""
    return (mean + std * normal).exp()


def vp_levels(u: Tensor, *, beta_d: float = 19.9, beta_min: float = 0.1, first: float = 1e-5) -> Tensor:
    """Noise levels of the variance-preserving process at t = 1 + u (first - 1), u in [0, 1) (EDM, Table 1)."""
    t = 1 + u * (first - 1)
    return torch.expm1(0.5 * beta_d * t**2 + beta_min * t).sqrt()


def ve_levels(u: Tensor, *, sigma_min: float = 0.02, sigma_max: float = 100.0) -> Tensor:
    """Noise levels in geometric progression from sigma_min at u = 0 to sigma_max (EDM, Table 1)."""
    return sigma_min * (sigma_max / sigma_min) ** u


def vp_preconditioned(beta_d: float = 19.9, beta_min: float = 0.1, *, levels: int = 1000) -> Prediction:
    """The noise, by a network that receives x / sqrt(alpha^2 + sigma^2) and (levels - 1) t(sigma / alpha), t the time
    of the variance-preserving process (EDM, Table 1, column VP)."""

    def time(p: Point) -> float:
        c = 2 * beta_d * log(1 + (p.sigma / p.alpha) ** 2)
        return (levels - 1) * (sqrt(beta_min**2 + c) - beta_min) / beta_d

    return Prediction(
        "edm-vp",
        x0=lambda p: (1 / p.alpha, -p.sigma / p.alpha),
        eps=lambda p: (0.0, 1.0),
        source="Karras et al. 2022, EDM, Table 1",
        scale=lambda p: 1 / sqrt(p.alpha**2 + p.sigma**2),
        noise_time=time,
    )


def ve_preconditioned() -> Prediction:
    """The noise with its sign changed, by a network that receives x / alpha and ln(sigma / (2 alpha)) (EDM, Table 1,
    column VE)."""

    def x0(p: Point) -> Coefficients:
        return 1 / p.alpha, p.sigma / p.alpha

    return Prediction(
        "edm-ve",
        x0=x0,
        eps=lambda p: (0.0, -1.0),
        source="Karras et al. 2022, EDM, Table 1",
        scale=lambda p: 1 / p.alpha,
        noise_time=lambda p: log(p.sigma / p.alpha / 2),
    )


def edm_loss(
    network: Network,
    process: Process,
    batch: Tensor,
    generator: torch.Generator,
    *,
    kind: str = "edm",
    sigma: Tensor | None = None,
    sigma_data: float = 0.5,
    reduction: str = "mean",
    noise: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """Squared error of the denoiser D(x0 + sigma n) against x0, weighted as in EDM, Table 1.

    kind: "edm" draws log-normal levels and weighs with (sigma^2 + sigma_data^2) / (sigma sigma_data)^2; "vp" and "ve"
    draw theirs and weigh with sigma^-2. process: the schedule EDM() or another one, and any prediction: "edm" for the
    raw network F, "x0" for a denoiser, `vp_preconditioned`, `ve_preconditioned`. sigma: noise levels sigma / alpha,
    (B,), instead of drawn ones. The rest and the result are as in `denoising_loss`.
    """
    levels: dict[str, Callable[[Tensor], Tensor]] = {"edm": edm_levels, "vp": vp_levels, "ve": ve_levels}
    one_of("kind", kind, levels)
    sigma_data = arguments.number("sigma_data", sigma_data)
    expect(sigma_data > 0, f"sigma_data must be positive, got {sigma_data!r}")
    if sigma is None:
        u = uniform(len(batch), generator)
        # The quantile function makes a normal number of each part of [0, 1).
        sigma = levels[kind](torch.special.ndtri(u.clamp(1e-12)) if kind == "edm" else u)
    sigma = times_of(sigma, len(batch), "sigma")
    weight = weighting.edm(sigma_data) if kind == "edm" else weighting.of_x0(lambda p: (p.alpha / p.sigma) ** 2)
    return denoising_loss(
        network,
        process,
        batch,
        generator,
        weighting=weight,
        reduction=reduction,
        times=process.schedule.t_of_lam(-sigma.detach().cpu().double().log().numpy()),
        noise=noise,
        **cond,
    )
