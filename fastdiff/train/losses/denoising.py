"""Denoising (Ho et al. 2020, DDPM, Eq. 14), whatever the network predicts, at random times or given ones."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff.train.losses.weighting import Weighting, plain
from fastdiff.train.process import Process
from fastdiff.train.terms import Network, full, normal, reduced, rows


def denoising_loss(
    network: Network,
    process: Process,
    batch: Tensor,
    generator: torch.Generator,
    *,
    weighting: Weighting = plain,
    reduction: str = "mean",
    times: ArrayLike | Tensor | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """Weighted squared error of the network's output against the prediction's target, of each sample.

    batch: x0, (B, ...). weighting: of `fastdiff.train.losses.weighting`; 1 unless given, sigma^2 for a score.
    reduction: "mean" or "sum" over all axes but the batch, "half-sum", or "none", which leaves (B, ...). times: of the
    schedule, (B,), uniform unless given. noise: like the batch, drawn unless given. cond: of the network, as in
    `fastdiff.sample`. Returns (B,) in the network's dtype, float32 for half precision. Raises ValueError for a
    prediction with a learned variance, and for EDM's schedule without times.
    """
    process.expect_single()
    eps = normal(batch, generator) if noise is None else noise
    points = process.points(len(batch), generator) if times is None else process.at(times)
    x, t = process.inputs(batch, eps, points)
    error = full(network(x, t, **cond)) - process.target(batch, eps, points)
    return reduced(rows([weighting(process, p) for p in points], error) * error.square(), reduction)
