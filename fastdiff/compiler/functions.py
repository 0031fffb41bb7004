"""The vocabulary of the graphs: one function for each operation, however a model spells it.

`spellings` turns the calls that Dynamo recorded into calls of these, with all arguments by position, and the passes
match and produce nothing else. Each is plain PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def gelu(x: Tensor, approximate: str) -> Tensor:
    """GELU; approximate: "none" or "tanh"."""
    return F.gelu(x, approximate=approximate)


def softmax(x: Tensor, dim: int) -> Tensor:
    """Softmax in the dtype of x."""
    return torch.softmax(x, dim)


def product(equation: str, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale times the sum over the shared indices: an einsum of two tensors, which matmul, bmm and baddbmm are too."""
    left, right, out = _matrices(equation)
    y = torch.matmul(a.permute(left), b.permute(right)).permute(out) if left else torch.einsum(equation, a, b)
    return y if scale == 1 else y * scale


def _matrices(equation: str) -> tuple[Any, Any, Any]:
    """How to permute both tensors and the result so that the equation is a product of (batched) matrices; empty where
    it is not one."""
    inputs, out = equation.split("->")
    a, b = inputs.split(",")
    batch = [x for x in out if x in a and x in b]
    rows, columns = [x for x in out if x not in b], [x for x in out if x not in a]
    summed = [x for x in a if x in b and x not in out]
    wanted = (len(batch) + len(rows) + len(summed), len(batch) + len(summed) + len(columns))
    if (len(rows), len(columns), len(summed)) != (1, 1, 1) or wanted != (len(a), len(b)):
        return (), (), ()
    result = [*batch, *rows, *columns]
    left = tuple(a.index(x) for x in (*batch, *rows, *summed))
    right = tuple(b.index(x) for x in (*batch, *summed, *columns))
    return left, right, tuple(result.index(x) for x in out)


def dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """F.scaled_dot_product_attention without dropout."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)


def upsample_nearest(x: Tensor) -> Tensor:
    """Twice the height and width, nearest neighbour."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`x.reshape(shape)`, which is what a view becomes where the layout has changed."""
    return x.reshape(shape)


def reshape_as(x: Tensor, other: Tensor) -> Tensor:
    """`x.reshape_as(other)`, likewise."""
    return x.reshape_as(other)


def permute(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """`x.permute(dims)`."""
    return x.permute(dims)


def index(x: Tensor, where: Any) -> Tensor:
    """`x[where]`."""
    return x[where]


def cat(tensors: list[Tensor], dim: int) -> Tensor:
    """`torch.cat(tensors, dim)`."""
    return torch.cat(tensors, dim)


def chunk(x: Tensor, chunks: int, dim: int) -> tuple[Tensor, ...]:
    """`x.chunk(chunks, dim)`."""
    return x.chunk(chunks, dim)


def power(base: Any, exponent: Any) -> Any:
    """`base ** exponent`."""
    return base**exponent


@functools.cache
def as_written(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function under another name: a call with arguments that the vocabulary has no word for."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    call.__name__ = call.__qualname__ = getattr(function, "__name__", "call")
    return call
