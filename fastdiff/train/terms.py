"""What every loss needs: draws, sums over all axes but the batch, values that are one for each sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import unknown

Network = Callable[..., Tensor]
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.flatten(1).mean(1),
    "sum": lambda x: x.flatten(1).sum(1),
    "half-sum": lambda x: 0.5 * x.flatten(1).sum(1),
    "none": lambda x: x,
}


def reduced(values: Tensor, reduction: str) -> Tensor:
    """(B, ...) to (B,): "mean", "sum" or "half-sum" over all axes but the batch; "none" leaves it as it is."""
    if reduction not in REDUCTIONS:
        raise unknown("reduction", reduction, REDUCTIONS)
    return REDUCTIONS[reduction](values)


def mean_d(values: Tensor) -> Tensor:
    """(B,): the mean over all axes but the batch."""
    return values.flatten(1).mean(1)


def sum_d(values: Tensor) -> Tensor:
    """(B,): the sum over all axes but the batch."""
    return values.flatten(1).sum(1)


def rows(values: Any, like: Tensor) -> Tensor:
    """Numbers, one for each sample, as (B, 1, ...) in the dtype and on the device of `like` (B, ...)."""
    values = torch.as_tensor(values, dtype=None if isinstance(values, Tensor) else torch.float64).to(like)
    return values.view(-1, *[1] * (like.ndim - 1))


def full(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the shape, dtype and device of `like`, from a generator on the CPU."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.randn(like.shape, generator=generator, dtype=dtype).to(like)


def uniform(count: int, generator: torch.Generator) -> Tensor:
    """(count,) in float64 on the CPU, one in each of `count` equal parts of [0, 1)."""
    return (torch.arange(count) + torch.rand(count, generator=generator, dtype=torch.float64)) / count
