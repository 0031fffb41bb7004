"""Lossy compression with a diffusion model (Theis et al. 2022, Lossy Compression with Gaussian Diffusion): its cost in
bits and the error that is left, with an ideal coder of the reverse channel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.process.schedules import Schedule
from fastdiff.train.losses.vlb import gaussian_kl
from fastdiff.train.terms import Network, full, normal, sum_d
from fastdiff.train.variance import Bars


class Encoded(NamedTuple):
    """bits: (K, B), of each step. first_bits: (B,), of the state at N, which starts from noise and is not sent. states:
    (K, B, ...), at the timesteps."""

    bits: Tensor
    first_bits: Tensor
    states: Tensor

    def rate(self, count: int) -> Tensor:
        """(B,): bits of the first `count` steps."""
        return self.bits[:count].sum(0)


def _means(bars: Bars, s: int, t: int, x0: Tensor, z: Tensor) -> Tensor:
    of_x0 = sqrt(bars.alpha_bar[s]) * bars.beta(s, t) / bars.variance[t]
    return of_x0 * x0 + sqrt(bars.alpha_bar[t] / bars.alpha_bar[s]) * bars.variance[s] / bars.variance[t] * z


def _x0_eps(network: Network, bars: Bars, z: Tensor, t: int, **cond: Any) -> tuple[Tensor, Tensor]:
    eps = full(network(z, bars.time(t, z), **cond))
    return (z - sqrt(bars.variance[t]) * eps) / sqrt(bars.alpha_bar[t]), eps


@torch.no_grad()
def encode(
    network: Network,
    schedule: Schedule,
    x0: Tensor,
    generator: torch.Generator,
    *,
    timesteps: Sequence[int],
    start: Tensor | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> Encoded:
    """DiffC-A: the state is sent from step to step, which costs the divergence of q(z_s | z_t, x0) from the model's
    p(z_s | z_t) (Theis et al. 2022, Section 3).

    network: predicts eps, and receives the schedule's time. x0: (B, ...). timesteps: decreasing, below N. start: the
    state at N, noise: (K, B, ...); drawn unless given. Raises ValueError for timesteps that do not decrease, TypeError
    for a schedule without steps.
    """
    bars = Bars(schedule)
    ends = [bars.steps, *(int(s) for s in timesteps)]
    expect(all(a > b > 0 for a, b in pairwise(ends)), f"timesteps must decrease from below {ends[0]} to above 0")
    z, bits, states = normal(x0, generator) if start is None else start, [], []
    zero = torch.zeros_like(x0)
    first = sum_d(gaussian_kl(sqrt(bars.alpha_bar[-1]) * x0, zero + log(bars.variance[-1]), zero, zero)) / log(2)
    for number, (t, s) in enumerate(pairwise(ends)):
        guess, _ = _x0_eps(network, bars, z, t, **cond)
        p, q, variance = _means(bars, s, t, guess, z), _means(bars, s, t, x0, z), float(bars.small(s, t))
        bits.append(sum_d((q - p).square()) / (2 * variance) / log(2))
        z = q + sqrt(variance) * (normal(x0, generator) if noise is None else noise[number])
        states.append(z)
    return Encoded(torch.stack(bits), first, torch.stack(states))


@torch.no_grad()
def decode(network: Network, schedule: Schedule, z: Tensor, t: int, *, timesteps: Sequence[int], **cond: Any) -> Tensor:
    """DiffC-F: from the state at step t along the probability flow (DDIM) to the data (Theis et al. 2022, Section 3.1).
    timesteps: decreasing, below t, the last 0."""
    bars = Bars(schedule)
    ends = [int(t), *(int(s) for s in timesteps)]
    expect(all(a > b >= 0 for a, b in pairwise(ends)) and ends[-1] == 0, "timesteps must decrease to 0")
    for before, s in pairwise(ends):
        x0, eps = _x0_eps(network, bars, z, before, **cond)
        z = sqrt(bars.alpha_bar[s]) * x0 + sqrt(bars.variance[s]) * eps
    return z
