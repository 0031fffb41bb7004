"""Truncated diffusion: a short chain that begins where a generator ends (Zheng et al. 2022, TDPM)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fastdiff.errors import expect
from fastdiff.process.schedules import Schedule
from fastdiff.train.chain import Chain
from fastdiff.train.terms import Network, full, normal, sum_d


def mirrored_steps(half: Tensor, truncated: int, count: int) -> Tensor:
    """(count,) steps: `half` and truncated - half, each of 0 .. truncated."""
    return torch.cat([half, truncated - half])[:count]


def truncated_loss(
    network: Network,
    schedule: Schedule,
    batch: Tensor,
    generator: torch.Generator,
    *,
    truncated: int,
    steps: Tensor | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """Sum of squares of the predicted noise's error at steps 0 .. truncated, of each sample, (B,) (Zheng et al. 2022,
    Eq. 8). network: (x, n). Raises TypeError for a schedule without steps, ValueError for one that is too short."""
    chain = Chain(schedule)
    expect(0 <= truncated < chain.steps - 1, f"truncated must lie in [0, {chain.steps - 2}], got {truncated}")
    z = normal(batch, generator, noise)
    if steps is None:
        half = torch.randint(truncated + 1, (len(batch) // 2 + 1,), generator=generator)
        steps = mirrored_steps(half, truncated, len(batch))
    x = chain.diffused(batch, z, steps)
    return sum_d((z - full(network(x, steps.to(batch), **cond))).square())


class DiscriminatorTerms(NamedTuple):
    """Of each sample, (B,); loss is their sum."""

    loss: Tensor
    real: Tensor
    fake: Tensor
    r1: Tensor


def generated(network: Network, z: Tensor, truncated: int, **cond: Any) -> Tensor:
    """What the network, as a generator, makes of noise z: its output at step truncated + 1."""
    return full(network(z, z.new_full((len(z),), truncated + 1), **cond))


def generator_loss(network: Network, discriminator: Network, z: Tensor, *, truncated: int, **cond: Any) -> Tensor:
    """softplus(-D(G(z))), of each sample, (B,) (Zheng et al. 2022, Eq. 9). discriminator: x -> (B,) or (B, 1)."""
    return softplus(-discriminator(generated(network, z, truncated, **cond))).flatten()


def discriminator_loss(
    discriminator: Network,
    schedule: Schedule,
    batch: Tensor,
    fake: Tensor,
    generator: torch.Generator,
    *,
    truncated: int,
    r1_gamma: float = 0.0,
    noise: Tensor | None = None,
) -> DiscriminatorTerms:
    """softplus(-D(real)) + softplus(D(fake)) + r1_gamma / 2 |dD/dx|^2 at real (Mescheder et al. 2018, R1), of each
    sample. real: the data at step truncated + 1. fake: what `generated` returns; no gradient flows into it."""
    chain = Chain(schedule)
    expect(0 <= truncated < chain.steps - 1, f"truncated must lie in [0, {chain.steps - 2}], got {truncated}")
    z = normal(batch, generator, noise)
    x = chain.diffused(batch, z, torch.full((len(batch),), truncated + 1)).detach()
    with torch.enable_grad():
        x.requires_grad_(r1_gamma > 0)
        score = discriminator(x).flatten()
        penalty = torch.zeros_like(score)
        if r1_gamma > 0:
            slope = torch.autograd.grad(score.sum(), x, create_graph=True)[0]
            penalty = 0.5 * r1_gamma * sum_d(slope.square())
    real, made = softplus(-score), softplus(discriminator(fake.detach()).flatten())
    return DiscriminatorTerms(real + made + penalty, real, made, penalty)
