"""What the passes put into a graph: operators whose arguments come by position, and functions beside them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff import ops
from fastdiff.ops.linear import Arguments as LinearArguments
from fastdiff.ops.linear import few
from fastdiff.ops.tensors import is_channels_last
from fastdiff.runtime.memory import empty


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """`ops.attention` without maps."""
    return ops.attention(q, k, v, mask=mask, scale=scale)


def linear(*values: Any) -> Tensor:
    """`ops.linear` of x (..., K); values: of its Arguments. A gate comes with (B, S, K) alone."""
    return by_rows(LinearArguments(*values), lambda a: ops.linear.run(a, inplace=True))


def by_rows(a: LinearArguments, run: Callable[[LinearArguments], Tensor]) -> Tensor:
    """run(a) for x (..., K), by way of (1, rows, K) where it is not (B, S, K)."""
    if a.x.ndim == 3:
        return run(a)
    *sizes, inputs = a.x.shape
    rows = math.prod(sizes)
    residual = None if a.residual is None else a.residual.reshape(1, rows, a.residual.shape[-1])
    y = run(a._replace(x=a.x.reshape(1, rows, inputs), residual=residual))
    return y.view(*sizes, y.shape[-1])


def worth_joining(x: Any, outputs: int) -> bool:
    """Whether the kernel would take layers of this input in one, going by the sizes that are known."""
    if x.ndim != 3 or ops.linear.unsupported(LinearArguments(x, x)) is not None:
        return False
    rows = x.shape[0] * x.shape[1]
    return not few(rows if isinstance(rows, int) else 1 << 20, x.shape[2], outputs)


def adds_residual(x: Any, weight: Any) -> bool:
    """Whether the kernel would take a layer of this input and weight, with what follows it."""
    return x.ndim == 3 and isinstance(weight.shape[0], int) and worth_joining(x, weight.shape[0])


def columns(y: Tensor, start: int, size: int) -> Tensor:
    """Some columns of a result, a view."""
    return y.narrow(-1, start, size)


def gated(x: Tensor) -> Tensor:
    """a gelu(b), where x is [a, b] in its last dimension."""
    a, b = x.chunk(2, -1)
    return F.gelu(b).mul_(a)


def cat_pooled(tensors: list[Tensor], dim: int) -> Tensor:
    """torch.cat, of channels-last maps into a channels-last one, in the pool's memory."""
    first = tensors[0]
    if not first.is_cpu or first.ndim != 4 or any(x.dtype is not first.dtype for x in tensors):
        return torch.cat(tensors, dim)
    layout = torch.channels_last if all(map(is_channels_last, tensors)) else torch.contiguous_format
    shape = list(first.shape)
    shape[dim] = sum(x.shape[dim] for x in tensors)
    return torch.cat(tensors, dim, out=empty(tuple(shape), dtype=first.dtype, memory_format=layout))


# Those whose results share no memory with anything else.
FRESH: tuple[Any, ...] = (attention, linear, gated, cat_pooled, *(op.positional for op in ops.OPS.values()))
