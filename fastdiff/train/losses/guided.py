"""Distillation of a guided model (Meng et al. 2023, On Distillation of Guided Diffusion Models), in two stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import unknown
from fastdiff.process.schedules import Point
from fastdiff.train.losses.progressive import Distilled, of_x0, scales, student_times, two_steps, views
from fastdiff.train.process import Process
from fastdiff.train.terms import Network, mean_d, normal


def _weight(points: list[Point], name: str) -> Tensor:
    snr = torch.tensor([(p.alpha / p.sigma) ** 2 for p in points], dtype=torch.float64)
    known = {"constant": torch.ones_like(snr), "snr": snr, "snr+1": snr + 1, "snr_trunc": snr.clamp(min=1)}
    if name not in known:
        raise unknown("weight", name, known)
    return known[name]


def guided_terms(
    network: Network,
    process: Process,
    batch: Tensor,
    generator: torch.Generator,
    *,
    teacher: Network,
    w: Tensor,
    uncond: Mapping[str, Any] | None = None,
    steps: int = 0,
    weight: str = "snr_trunc",
    u: Tensor | None = None,
    index: Tensor | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> Distilled:
    """`guided_loss` with the states and targets."""
    noise = normal(batch, generator, noise)
    t = student_times(process, len(batch), generator, steps, u, index)
    points = process.schedule.points(t)
    alpha, sigma = scales(points, batch)
    z = alpha * batch + sigma * noise
    if uncond is None:
        x0 = two_steps(teacher, process, z, t, steps, w=w, **cond)
    else:
        with torch.no_grad():
            strength = w.to(z).view(-1, *[1] * (z.ndim - 1))
            with_cond = views(teacher, process, z, points, **cond).x0
            x0 = (1 + strength) * with_cond - strength * views(teacher, process, z, points, **uncond).x0
    found = views(network, process, z, points, w=w, **cond)
    loss = _weight(points, weight).to(z) * mean_d((found.x0 - x0).square())
    return Distilled(loss, z, of_x0(x0, z, points), found)


def guided_loss(
    network: Network, process: Process, batch: Tensor, generator: torch.Generator, **options: Any
) -> Tensor:
    """The error of x0 of a student that is told the guidance w, of each sample, (B,).

    network: called as `network(z, t, w=w, **cond)`. teacher, uncond: first stage, the teacher's x0 with classifier-free
    guidance, (1 + w) x0(cond) - w x0(uncond) (Meng et al. 2023, Eq. 2); second stage without `uncond`: two DDIM steps
    of a teacher that is told w itself (Algorithm 2). w: (B,). weight: "constant", "snr", "snr+1" or "snr_trunc", which
    is max(SNR, 1), of the error of x0. The rest as in `progressive_loss`. Raises ValueError for another weight.
    """
    return guided_terms(network, process, batch, generator, **options).loss
