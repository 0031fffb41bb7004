"""Consistency distillation of a guided model, on its own schedule (Luo et al. 2023, Latent Consistency Models)."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.process.schedules import Float64Array
from fastdiff.train.losses.progressive import scales, student_times, views
from fastdiff.train.process import Process
from fastdiff.train.terms import Network, normal, sum_d


class Consistent(NamedTuple):
    """Of each sample: loss (B,), the state, the one that the teacher gets to, the network's x0 and what it is compared
    with, (B, ...)."""

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
    ahead: int = 1,
    target: Network | None = None,
    huber_c: float | None = None,
    index: Tensor | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> Consistent:
    """`guided_consistency_loss` with the states and the target."""
    expect(levels >= 1, f"levels must be at least 1, got {levels}")
    expect(ahead >= 1, f"ahead must be at least 1, got {ahead}")
    noise = normal(batch, generator, noise)
    t = student_times(process, len(batch), generator, levels, None, index)
    points = process.schedule.points(t)
    alpha, sigma = scales(points, batch)
    z = alpha * batch + sigma * noise
    with torch.no_grad():
        z_next, s = z, t
        for _ in range(ahead):
            z_next, s = _step(teacher, process, z_next, s, levels, cond)
        on_the_way = torch.from_numpy(s > 0).to(z.device)
        goal = z_next.clone()  # at the data the state is its own x0
        if bool(on_the_way.any()):
            inner = process.schedule.points(s[s > 0])
            goal[on_the_way] = views(target or network, process, z_next[on_the_way], inner, **_of(cond, on_the_way)).x0
    found = views(network, process, z, points, **cond).x0
    c = 0.00054 * sqrt(batch[0].numel()) if huber_c is None else huber_c
    return Consistent(pseudo_huber(found - goal, c), z, z_next, found, goal)


def _step(
    teacher: Network, process: Process, z: Tensor, t: Float64Array, levels: int, cond: Mapping[str, Any]
) -> tuple[Tensor, Float64Array]:
    """One DDIM step of those samples that are not at the data yet: their states, and their times."""
    length = process.schedule.t_max / levels
    s = np.where(t < 1.5 * length, 0.0, t - length)  # exactly 0 at the last level
    on_the_way = torch.from_numpy(t > 0).to(z.device)
    if not bool(on_the_way.any()):
        return z, s
    at_t, at_s = (process.schedule.points(times[t > 0]) for times in (t, s))
    found = views(teacher, process, z[on_the_way], at_t, **_of(cond, on_the_way))
    alpha, sigma = scales(at_s, z)
    z = z.clone()
    z[on_the_way] = alpha * found.x0 + sigma * found.eps
    return z, s


def _of(cond: Mapping[str, Any], chosen: Tensor) -> dict[str, Any]:
    """The conditions of some samples."""
    return {name: value[chosen] for name, value in cond.items()}


def guided_consistency_loss(
    network: Network, process: Process, batch: Tensor, generator: torch.Generator, **options: Any
) -> Tensor:
    """Pseudo-Huber distance of the network's x0 from that after DDIM steps of the teacher, of each sample, (B,) (Luo et
    al. 2023, Algorithm 1).

    network, teacher: with the process's prediction; `fastdiff.train.teacher.guided` puts guidance into a teacher.
    target: what x0 is compared with, the network without gradient unless given (Song & Dhariwal 2023, Section 3.2).
    levels: equal steps from t_max to the data. ahead: how many of them the teacher takes before the target is asked;
    `levels` of them end at the data for every sample, and need no target: what the network learns does not move then.
    huber_c: 0.00054 sqrt(D) unless given. batch: x0, (B, ...). index: (B,), 0 .. levels - 1, 0 the step to the data;
    noise: drawn unless given. The rest are conditions of all networks, (B, ...). Raises ValueError without levels.
    """
    return guided_consistency_terms(network, process, batch, generator, **options).loss
