"""What the passes put into a graph: the operators, with all arguments by position."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff import ops
from fastdiff.runtime.memory import empty


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """`ops.attention` without maps."""
    return ops.attention(q, k, v, mask=mask, scale=scale)


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
) -> Tensor:
    """`ops.group_norm_silu`."""
    return ops.group_norm_silu(x, groups, weight, bias, eps, scale=scale, shift=shift, activation=activation)


def ada_layer_norm(
    x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """`ops.ada_layer_norm`."""
    return ops.ada_layer_norm(x, scale, shift, weight=weight, bias=bias, eps=eps)


def geglu(x: Tensor) -> Tensor:
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


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a map lie side by side."""
    return x.is_contiguous(memory_format=torch.channels_last)


def channels_last(x: Tensor) -> Tensor:
    """The map with its channels side by side."""
    return x.contiguous(memory_format=torch.channels_last)


def restore_strides(x: Any, channels_last: bool) -> Any:
    """An output as the original gives it."""
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
