"""What the passes put into a graph: operators whose arguments come by position, and functions beside them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff import ops
from fastdiff.ops.conv2d import is_channels_last
from fastdiff.ops.linear import Arguments as LinearArguments
from fastdiff.ops.linear import few
from fastdiff.ops.tensors import TYPES
from fastdiff.runtime import choice
from fastdiff.runtime.dispatcher import is_memory
from fastdiff.runtime.memory import empty


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """`ops.attention` without maps."""
    return ops.attention(q, k, v, mask=mask, scale=scale)


def linear(*values: Any) -> Tensor:
    """`ops.linear`, and the same in PyTorch where x is not (B, S, K). values: of its Arguments."""
    a = LinearArguments(*values)
    return ops.linear.run(a, inplace=True) if a.x.ndim == 3 else ops.linear.reference(a, inplace=True)


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


def gated(x: Tensor, activation: str) -> Tensor:
    """a act(b), where x is [a, b] in its last dimension. activation: "gelu", "gelu_tanh" or "silu"."""
    if on_triton(x) and x.is_contiguous():
        from fastdiff.kernels.pointwise import gated as kernel

        return kernel(x, activation)
    a, b = x.chunk(2, -1)
    if activation == "silu":
        return F.silu(b).mul_(a)
    return F.gelu(b, approximate="tanh" if activation == "gelu_tanh" else "none").mul_(a)


def add_bias(
    x: Tensor, bias: Tensor | None, channel_bias: Tensor | None, residual: Tensor | None, activation: str | None
) -> Tensor:
    """activation(x + bias + channel_bias + residual), of channels (C,), of samples and channels (N, C), and all. It may
    overwrite x, (N, C, H, W)."""
    dense = x.is_contiguous() or is_channels_last(x)
    if dense and on_triton(x):
        from fastdiff.kernels.pointwise import add_bias as kernel

        return kernel(x, bias, channel_bias, residual, activation)
    x = x if bias is None else x.add_(bias[:, None, None])
    x = x if channel_bias is None else x.add_(channel_bias[:, :, None, None])
    x = x if residual is None else x.add_(residual)
    return F.silu(x, inplace=True) if activation == "silu" else x


def on_triton(x: Tensor) -> bool:
    """Whether the kernels that are no operators take this; float64 and what runs no Triton goes to PyTorch."""
    if x.is_cpu or x.dtype not in TYPES or choice.current() == "reference" or not is_memory(x):
        return False
    reason = choice.out_of_reach("x", x)
    if reason is not None:
        choice.note("linear and conv2d", f"what follows a product runs in PyTorch: {reason}")
    return reason is None


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
