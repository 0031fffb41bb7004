"""One step for a whole run of DDIM (Luhman & Luhman 2021, Knowledge Distillation in Iterative Generative Models)."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.errors import expect, unknown
from fastdiff.process.schedules import Schedule
from fastdiff.train.chain import Chain
from fastdiff.train.terms import Network, full, sum_d


def teacher_steps(kind: str, count: int, total: int = 1000) -> list[int]:
    """Numbers of the teacher's steps, increasing: "quadratic" or "uniform" (Song et al. 2021, DDIM, Appendix D.2).
    Raises ValueError for another kind."""
    if kind == "quadratic":
        return [int(x) for x in np.linspace(0, sqrt(0.8 * total), count) ** 2]
    if kind == "uniform":
        return list(range(0, total, total // count))
    raise unknown("kind of steps", kind, ("quadratic", "uniform"))


@torch.no_grad()
def ddim_pairs(teacher: Network, schedule: Schedule, noise: Tensor, steps: Sequence[int], **cond: Any) -> Tensor:
    """The data that DDIM (eta = 0) makes of noise (B, ...) with a network that predicts eps, over steps n of a discrete
    schedule, increasing; the last step ends at alpha = 1. The network receives n. Raises TypeError for a schedule
    without steps."""
    chain, x = Chain(schedule), noise
    expect(len(steps) > 0, "steps must not be empty")
    for n, end in zip(reversed(steps), [*reversed(steps[:-1]), -1]):
        eps = full(teacher(x, torch.full((len(x),), n).to(x), **cond))
        alpha, sigma = sqrt(chain.alpha_bar[n]), sqrt(chain.variance[n])
        x0 = (x - sigma * eps) / alpha
        x = x0 if end < 0 else sqrt(chain.alpha_bar[end]) * x0 + sqrt(chain.variance[end]) * eps
    return x


def as_stored(noise: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs as the original code stores them: noise in float16, data in eight bits."""
    return noise.to(torch.float16).to(noise), ((127.5 * data.clamp(-1, 1) + 127.5).floor() / 127.5 - 1)


def one_shot_loss(
    network: Network, noise: Tensor, data: Tensor, *, kind: str = "l2", time: float = 999.0, **cond: Any
) -> Tensor:
    """Sum of squares ("l2") or of absolute values ("l1") of noise - network(noise, time) - data, of each sample, (B,)
    (Luhman & Luhman 2021, Eq. 7). Raises ValueError for another kind."""
    if kind not in ("l1", "l2"):
        raise unknown("kind", kind, ("l1", "l2"))
    error = noise - full(network(noise, noise.new_full((len(noise),), time), **cond)) - data
    return sum_d(error.square() if kind == "l2" else error.abs())
