"""Consistency distillation of a guided model, on its own schedule (Luo et al. 2023, Latent Consistency Models)."""

from __future__ import annotations

from math import sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.train.losses.progressive import scales, student_times, views
from fastdiff.train.process import Process
from fastdiff.train.terms import Network, normal, rows, sum_d


class Consistent(NamedTuple):
    """Of each sample: loss (B,), the state, the teacher's next one, and the x0 of the network and of the target there,
    (B, ...)."""

    loss: Tensor
    z: Tensor
    z_next: Tensor
    found: Tensor
    target: Tensor


def pseudo_huber(error: Tensor, c: float) -> Tensor:
    """(B,): sqrt(|error|^2 + c^2) - c (Song & Dhariwal 2023, Improved Techniques, Eq. 9)."""
    return (sum_d(error.square()) + c**2).sqrt() - c


def guided_consistency_terms(
    network: Network,
    process: Process,
    batch: Tensor,
    generator: torch.Generator,
    *,
    teacher: Network,
    levels: int,
    target: Network | None = None,
    huber_c: float | None = None,
    index: Tensor | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> Consistent:
    """`guided_consistency_loss` with the states and the target."""
    expect(levels >= 1, f"levels must be at least 1, got {levels}")
    noise = normal(batch, generator) if noise is None else noise
    t = student_times(process, len(batch), generator, levels, None, index)
    length = process.schedule.t_max / levels
    s = np.where(t < 1.5 * length, 0.0, t - length)  # exactly 0 at the last level
    at_t, at_s = process.schedule.points(t), process.schedule.points(s)
    # At the data the state is its own x0; the network is asked at another time there, and not listened to.
    asked = process.schedule.points(np.where(s == 0, t, s))
    (alpha, sigma), (alpha_s, sigma_s) = scales(at_t, batch), scales(at_s, batch)
    z = alpha * batch + sigma * noise
    with torch.no_grad():
        step = views(teacher, process, z, at_t, **cond)
        z_next = alpha_s * step.x0 + sigma_s * step.eps
        inner = views(target or network, process, z_next, asked, **cond).x0
        goal = torch.where(rows(torch.from_numpy(s), z) == 0, z_next, inner)
    found = views(network, process, z, at_t, **cond).x0
    c = 0.00054 * sqrt(batch[0].numel()) if huber_c is None else huber_c
    return Consistent(pseudo_huber(found - goal, c), z, z_next, found, goal)


def guided_consistency_loss(
    network: Network, process: Process, batch: Tensor, generator: torch.Generator, **options: Any
) -> Tensor:
    """Pseudo-Huber distance of the network's x0 from that after one DDIM step of the teacher, of each sample, (B,) (Luo
    et al. 2023, Algorithm 1).

    network, teacher: with the process's prediction; `fastdiff.train.teacher.guided` puts guidance into a teacher.
    target: what x0 is compared with, the network without gradient unless given (Song & Dhariwal 2023, Section 3.2).
    levels: equal steps from t_max to the data. huber_c: 0.00054 sqrt(D) unless given. batch: x0, (B, ...). index: (B,),
    0 .. levels - 1, 0 the step to the data; noise: drawn unless given. The rest are conditions of all networks. Raises
    ValueError without levels.
    """
    return guided_consistency_terms(network, process, batch, generator, **options).loss
