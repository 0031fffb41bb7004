"""Scheduled sampling: the network is trained on states that it has reached itself (Deng et al. 2023, Markup-to-Image
Diffusion Models with Scheduled Sampling)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.process.schedules import Schedule
from fastdiff.train.chain import Chain
from fastdiff.train.terms import Network, full, mean_d, normal


class ScheduledTerms(NamedTuple):
    """loss: (B,). x: the state reached; target: the noise that leads from x0 there. states: (m, B, ...), on the way."""

    loss: Tensor
    x: Tensor
    target: Tensor
    states: Tensor
    rolled: int


def roll_probabilities(start: Sequence[float], end: Sequence[float], progress: float) -> Tensor:
    """(m + 1,), float64: how likely 0 .. m steps of the network are, with weights of 1 .. m that go from start to end
    with progress 0 to 1. Raises ValueError for weights whose sum is above 1."""
    weights = torch.tensor(start, dtype=torch.float64)
    weights = weights + progress * (torch.tensor(end, dtype=torch.float64) - weights)
    expect(bool((weights >= 0).all()) and float(weights.sum()) <= 1, f"weights must sum to at most 1, got {weights}")
    return torch.cat([1 - weights.sum(0, keepdim=True), weights])


def scheduled_terms(
    network: Network,
    schedule: Schedule,
    batch: Tensor,
    generator: torch.Generator,
    *,
    rolled: int,
    steps: Tensor | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> ScheduledTerms:
    """`scheduled_loss` with the states."""
    chain = Chain(schedule)
    if steps is None:
        steps = torch.randint(chain.steps, (len(batch),), generator=generator)
    m = min(rolled, chain.steps - 1 - int(steps.max()))  # one for the batch, lowered until it fits all

    def draw(number: int) -> Tensor:
        return normal(batch, generator) if noise is None else noise[number]

    x, states = chain.diffused(batch, draw(0), steps + m), []
    with torch.no_grad():
        for k in range(m):
            n = steps + m - k
            states.append(x)
            eps = full(network(x, n.to(batch), **cond))
            x0 = (x - chain.at(chain.variance**0.5, n, x) * eps) / chain.at(chain.alpha_bar**0.5, n, x)
            x = chain.diffused(x0, draw(k + 1), n - 1)
    root, sigma = chain.at(chain.alpha_bar**0.5, steps, x), chain.at(chain.variance**0.5, steps, x)
    target = (x - root * batch) / sigma
    loss = mean_d((full(network(x, steps.to(batch), **cond)) - target).square())
    return ScheduledTerms(loss, x, target, torch.stack(states) if states else x[:0], m)


def scheduled_loss(
    network: Network, schedule: Schedule, batch: Tensor, generator: torch.Generator, **options: Any
) -> Tensor:
    """Mean square error of the noise at a state reached by `rolled` steps of the network itself, of each sample, (B,).

    network: (x, n) -> eps, n = 0 .. T-1. rolled: see `roll_probabilities`; lowered where the chain has no step so far.
    batch: x0, (B, ...). steps: (B,); noise: (rolled + 1, B, ...); drawn unless given. Raises TypeError for a schedule
    without steps.
    """
    return scheduled_terms(network, schedule, batch, generator, **options).loss
