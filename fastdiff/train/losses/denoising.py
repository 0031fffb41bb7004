"""Denoising (Ho et al. 2020, DDPM, Eq. 14), whatever the network predicts, at random times or given ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff.errors import one_of
from fastdiff.train.losses.weighting import Weighting, plain
from fastdiff.train.process import Process
from fastdiff.train.terms import Network, full, normal, reduced, rows

NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda d: d.square(),
    "l1": lambda d: d.abs(),
    "huber": lambda d: torch.where(d.abs() < 1, 0.5 * d.square(), d.abs() - 0.5),
}


def denoising_loss(
    network: Network,
    process: Process,
    batch: Tensor,
    generator: torch.Generator,
    *,
    weighting: Weighting = plain,
    reduction: str = "mean",
    norm: str = "l2",
    times: ArrayLike | Tensor | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """Weighted squared error of the network's output against the prediction's target, of each sample.

    batch: x0, (B, ...). weighting: of `fastdiff.train.losses.weighting`; 1 unless given, sigma^2 for a score.
    reduction: "mean" or "sum" over all axes but the batch, "half-sum", or "none", which leaves (B, ...). norm: "l2", or
    in place of the square "l1", or "huber", d^2 / 2 below 1 and |d| - 1/2 above. times: of the schedule, (B,), uniform
    unless given. noise: like the batch, drawn unless given. cond: of the network, as in `fastdiff.sample`. Returns (B,)
    in the network's dtype, float32 for half precision. Raises ValueError for a prediction with a learned variance, for
    EDM's schedule without times, and for an unknown norm or reduction.
    """
    process.expect_single()
    one_of("norm", norm, NORMS)
    eps = normal(batch, generator, noise)
    points = process.points(len(batch), generator) if times is None else process.at(times)
    x, t = process.inputs(batch, eps, points)
    error = full(network(x, t, **cond)) - process.target(batch, eps, points)
    return reduced(rows([weighting(process, p) for p in points], error) * NORMS[norm](error), reduction)
