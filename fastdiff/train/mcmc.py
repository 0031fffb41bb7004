"""Denoising MCMC (Kim & Ye 2023): Langevin steps on pairs of a picture and its noise level, samples by a short reverse
run from where the level was lowest. The process is variance-exploding: alpha = 1."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastdiff.errors import unknown
from fastdiff.train.terms import Network, full, normal, rows, sum_d

Score = Callable[[Tensor, Tensor], Tensor]


class Chains(NamedTuple):
    """x, sigma: the state of each chain; trace: (steps, B), its levels; x_lowest, sigma_lowest: where the level was
    lowest."""

    x: Tensor
    sigma: Tensor
    trace: Tensor
    x_lowest: Tensor
    sigma_lowest: Tensor


def noise_levels(sigma_min: float = 0.01, sigma_max: float = 50.0, *, count: int = 1000) -> Tensor:
    """(count,) in float64, from sigma_max down, sigma_min (sigma_max / sigma_min)^tau, tau from 1 to 0.001."""
    tau = torch.linspace(1.0, 0.001, count, dtype=torch.float64)
    return sigma_min * (sigma_max / sigma_min) ** tau


def gaussian_classifier(levels: Tensor, data_variance: float) -> Callable[[Tensor], Tensor]:
    """x (B, ...) to the level that makes it likeliest if the data were normal with this variance, (B,)."""

    def classify(x: Tensor) -> Tensor:
        v = levels.to(x) ** 2 + data_variance
        likely = -sum_d(x.square())[:, None] / (2 * v) - x[0].numel() / 2 * v.log()
        return levels.to(x)[likely.argmax(1)]

    return classify


@torch.no_grad()
def gibbs(
    score: Score,
    classifier: Callable[[Tensor], Tensor],
    x: Tensor,
    sigma: Tensor,
    generator: torch.Generator,
    *,
    steps: int,
    eta: float,
    noise: Tensor | None = None,
) -> Chains:
    """`steps` times a Langevin step x + eta / 2 score(x, sigma) + sqrt(eta) z, then sigma of the classifier (Kim & Ye
    2023, Algorithm 1). x: (B, ...), sigma: (B,). noise: (steps, B, ...), drawn unless given."""
    lowest, sigma_lowest, trace = x, sigma, []
    for k in range(steps):
        z = normal(x, generator) if noise is None else noise[k]
        x = x + eta / 2 * score(x, sigma) + sqrt(eta) * z
        sigma = classifier(x)
        trace.append(sigma)
        better = sigma < sigma_lowest
        lowest = torch.where(rows(better.to(x), x) > 0, x, lowest)
        sigma_lowest = torch.where(better, sigma, sigma_lowest)
    return Chains(x, sigma, torch.stack(trace), lowest, sigma_lowest)


@torch.no_grad()
def denoise(
    score: Score,
    x: Tensor,
    sigma: Tensor,
    generator: torch.Generator,
    *,
    steps: int,
    integrator: str = "heun",
    sigma_min: float = 0.01,
    rho: float = 7.0,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = float("inf"),
    s_noise: float = 1.0,
    tweedie: float = 0.01,
    noise: Tensor | None = None,
) -> Tensor:
    """From levels sigma, (B,), each sample on its own grid of steps - 1 levels down to sigma_min, then 0; and tweedie^2
    score(x, tweedie) at the end (Karras et al. 2022, EDM, Algorithm 2; Kim & Ye 2023, Section 3.3).

    integrator: "heun", or "churn", which adds noise before each step as EDM does. noise: (steps - 1, B, ...), drawn
    unless given. Raises ValueError for another integrator.
    """
    if integrator not in ("heun", "churn"):
        raise unknown("integrator", integrator, ("heun", "churn"))
    u = torch.linspace(0.0, 1.0, steps - 1, dtype=torch.float64).to(x)[:, None]
    grid = (sigma ** (1 / rho) + u * (sigma_min ** (1 / rho) - sigma ** (1 / rho))) ** rho
    grid = torch.cat([grid, torch.zeros_like(grid[:1])])
    for k in range(steps - 1):
        level, end = grid[k], grid[k + 1]
        if integrator == "churn":
            gamma = min(s_churn / steps, sqrt(2) - 1)
            higher = torch.where((level >= s_tmin) & (level <= s_tmax), (1 + gamma) * level, level)
            z = normal(x, generator) if noise is None else noise[k]
            x = x + rows((higher**2 - level**2).sqrt(), x) * s_noise * z
            level = higher
        slope = -rows(level, x) * score(x, level)
        step = rows(end - level, x)
        guess = x + step * slope
        last = k == steps - 2
        x = guess if last else x + step * 0.5 * (slope - rows(end, x) * score(guess, end))
    return x + tweedie**2 * score(x, torch.full_like(sigma, tweedie))


def classifier_loss(
    network: Network,
    levels: Tensor,
    batch: Tensor,
    generator: torch.Generator,
    *,
    label: Tensor | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """Cross-entropy of a network that says which level was added to x0, of each sample, (B,). network: x -> (B,
    levels). label: (B,), noise: drawn unless given."""
    z = normal(batch, generator, noise)
    if label is None:
        label = torch.randint(len(levels), (len(batch),), generator=generator)
    logits = full(network(batch + rows(levels[label.cpu()], batch) * z, **cond))
    return cross_entropy(logits, label.to(logits.device), reduction="none")
