"""Denoising at random times (Ho et al. 2020, DDPM, Eq. 14), whatever the network predicts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastdiff.train.process import Process


def denoising_loss(
    network: Callable[..., Tensor], process: Process, batch: Tensor, generator: torch.Generator, **cond: Tensor
) -> Tensor:
    """Mean squared error of the network's output against the prediction's target, of each sample, (B,) in float32.

    The error of a score is weighted with sigma^2 (Song et al. 2021, Score SDE, Section 3.3), that of the others with 1.
    batch: x0, (B, ...) in float32. cond: of the network, as in `fastdiff.sample`.
    """
    eps = torch.randn(batch.shape, generator=generator).to(batch)
    points = process.points(len(batch), generator)
    x, t = process.inputs(batch, eps, points)
    error = network(x, t, **cond).float() - process.target(batch, eps, points)
    loss = error.square().flatten(1).mean(1)
    if process.prediction.name == "score":
        loss = loss * torch.tensor([p.sigma**2 for p in points]).to(loss)
    return loss
