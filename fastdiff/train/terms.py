"""What every loss needs: draws, sums over all axes but the batch, values that are one for each sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.errors import expect, one_of

Network = Callable[..., Tensor]
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.flatten(1).mean(1),
    "sum": lambda x: x.flatten(1).sum(1),
    "half-sum": lambda x: 0.5 * x.flatten(1).sum(1),
    "none": lambda x: x,
}


def reduced(values: Tensor, reduction: str) -> Tensor:
    """(B, ...) to (B,): "mean", "sum" or "half-sum" over all axes but the batch; "none" leaves it as it is."""
    one_of("reduction", reduction, REDUCTIONS)
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


def normal(like: Tensor, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
    """Standard normal noise of the shape, dtype and device of `like`, from a generator on the CPU; or what is given in
    its place. Raises TypeError or ValueError for noise of another shape, and for what is no data or no generator."""
    arguments.state("batch", like)
    if given is not None:
        if not isinstance(given, Tensor):
            raise TypeError(f"noise must be a tensor like the batch, got {arguments.described(given)}")
        expect(given.shape == like.shape, f"noise must be {tuple(like.shape)}, as the batch, got {tuple(given.shape)}")
        return given
    _check(generator)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.randn(like.shape, generator=generator, dtype=dtype).to(like)


def uniform(count: int, generator: torch.Generator) -> Tensor:
    """(count,) in float64 on the CPU, one in each of `count` equal parts of [0, 1)."""
    _check(generator)
    return (torch.arange(count) + torch.rand(count, generator=generator, dtype=torch.float64)) / count


def times_of(given: Any, count: int, name: str = "times") -> Tensor:
    """Times, or noise levels, that are given, one for each sample, (count,)."""
    try:
        times = torch.as_tensor(given, dtype=None if isinstance(given, Tensor) else torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be numbers, one a sample, got {arguments.described(given)}") from None
    expect(times.shape == (count,), f"{name} must be one a sample, ({count},), got shape {tuple(times.shape)}")
    return times


def _check(generator: torch.Generator) -> None:
    """Raise TypeError for what is no generator."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {arguments.described(generator)}")
