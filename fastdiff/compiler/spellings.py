"""From the calls that a model makes to the vocabulary of `functions`: one entry for each spelling.

Each entry has the signature of what it stands for and returns the function and its positional arguments, or None where
the arguments ask for something that the vocabulary has no word for; the call then stays as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fastdiff.compiler import functions
from fastdiff.compiler.nodes import Node, dtype, number, rank, same, shape, value

Call = tuple[Any, ...] | None

FUNCTIONS: dict[Any, Callable[..., Call]] = {}
METHODS: dict[str, Callable[..., Call]] = {}


def _spelled(*targets: Any, methods: tuple[str, ...] = ()) -> Callable[..., Any]:
    def add(bind: Callable[..., Call]) -> Callable[..., Call]:
        FUNCTIONS.update(dict.fromkeys(targets, bind))
        METHODS.update(dict.fromkeys(methods, bind))
        return bind

    return add


def canonical(node: Node) -> Call:
    """(function, argument, ...) for a recorded call, or None where there is no word for it."""
    table: Any = FUNCTIONS if node.op == "call_function" else METHODS
    bind = table.get(node.target) if node.op in ("call_function", "call_method") else None
    if bind is None:
        return None
    try:
        return bind(*node.args, **node.kwargs)
    except TypeError:  # arguments that the entry does not know
        return None


def _pair(x: Any) -> tuple[Any, ...]:
    return tuple(x) * (2 // len(x)) if isinstance(x, (tuple, list)) else (x, x)


@_spelled(torch.conv2d, F.conv2d)
def _conv2d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Call:
    if isinstance(padding, str) or rank(input) != 4:
        return None
    return torch.conv2d, input, weight, bias, _pair(stride), _pair(padding), _pair(dilation), groups


@_spelled(F.linear)
def _linear(input: Any, weight: Any, bias: Any = None) -> Call:
    return F.linear, input, weight, bias


@_spelled(F.silu, methods=("silu",))
def _silu(input: Any, inplace: bool = False) -> Call:
    return F.silu, input


@_spelled(torch.sigmoid, F.sigmoid, methods=("sigmoid",))
def _sigmoid(input: Any) -> Call:
    return torch.sigmoid, input


@_spelled(F.gelu)
def _gelu(input: Any, approximate: str = "none") -> Call:
    return functions.gelu, input, approximate


@_spelled(torch.softmax, F.softmax, methods=("softmax",))
def _softmax(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Call:
    source = value(input)
    if not isinstance(dim, int) or (dtype is not None and dtype is not source.dtype):
        return None
    return functions.softmax, input, dim % source.ndim


@_spelled(torch.add, operator.add, operator.iadd, methods=("add", "__add__", "add_"))
def _add(input: Any, other: Any, *, alpha: float = 1) -> Call:
    return (operator.add, input, other) if alpha == 1 else None


@_spelled(torch.sub, operator.sub, operator.isub, methods=("sub", "sub_"))
def _sub(input: Any, other: Any, *, alpha: float = 1) -> Call:
    return (operator.sub, input, other) if alpha == 1 else None


@_spelled(torch.mul, operator.mul, operator.imul, methods=("mul", "__mul__", "mul_"))
def _mul(input: Any, other: Any) -> Call:
    return operator.mul, input, other


@_spelled(torch.div, operator.truediv, operator.itruediv, methods=("div", "div_"))
def _div(input: Any, other: Any) -> Call:
    return operator.truediv, input, other


@_spelled(F.group_norm)
def _group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Call:
    return F.group_norm, input, num_groups, weight, bias, eps


@_spelled(F.layer_norm)
def _layer_norm(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Call:
    sizes = normalized_shape if isinstance(normalized_shape, fx.Node) else tuple(normalized_shape)
    return F.layer_norm, input, sizes, weight, bias, eps


@_spelled(F.scaled_dot_product_attention)
def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    enable_gqa: bool = False,
) -> Call:
    if dropout_p != 0 or enable_gqa:
        return None
    return functions.dot_product_attention, query, key, value, attn_mask, is_causal, scale


@_spelled(torch.matmul, torch.bmm, operator.matmul, methods=("matmul", "bmm", "__matmul__"))
def _matmul(input: Any, other: Any) -> Call:
    a, b = shape(input), shape(other)
    if a is None or b is None or len(a) != len(b) or len(a) < 2 or not same(a[:-2], b[:-2]):
        return None
    batch = "abc"[: len(a) - 2]
    return functions.product, f"{batch}ij,{batch}jk->{batch}ik", input, other, 1.0


@_spelled(torch.baddbmm)
def _baddbmm(input: Any, batch1: Any, batch2: Any, *, beta: float = 1, alpha: float = 1) -> Call:
    return (functions.product, "aij,ajk->aik", batch1, batch2, float(alpha)) if beta == 0 else None


@_spelled(torch.einsum, torch.functional.einsum)
def _einsum(equation: str, *tensors: Any) -> Call:
    found = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else tensors
    equation = equation.replace(" ", "")
    if len(found) != 2 or "..." in equation or "->" not in equation:
        return None
    inputs, out = equation.split("->")
    if any(len(set(labels)) != len(labels) for labels in (*inputs.split(","), out)):
        return None
    return functions.product, equation, found[0], found[1], 1.0


def _sizes(*sizes: Any) -> Any:
    """Sizes, given one by one or at once: a tuple of numbers and nodes that are numbers, or the node of a whole shape,
    which is what another tensor's is where sizes are symbols."""
    if len(sizes) != 1:
        return sizes
    (only,) = sizes
    if isinstance(only, (tuple, list)):
        return tuple(only)
    return only if isinstance(value(only), (tuple, list)) else sizes


@_spelled(torch.reshape, methods=("reshape", "view"))
def _reshape(input: Any, *sizes: Any, shape: Any = None, size: Any = None) -> Call:
    given = shape if shape is not None else size
    wanted = _sizes(*sizes) if given is None else _sizes(given)
    if not wanted or any(
        isinstance(value(each), torch.dtype) for each in (wanted if isinstance(wanted, tuple) else ())
    ):
        return None
    return functions.reshape, input, wanted


@_spelled(methods=("view_as", "reshape_as"))
def _reshape_as(input: Any, other: Any) -> Call:
    return functions.reshape_as, input, other


@_spelled(torch.permute, methods=("permute",))
def _permute(input: Any, *sizes: Any, dims: Any = None) -> Call:
    order = _sizes(*sizes) if dims is None else tuple(dims)
    return functions.permute, input, tuple(dim % rank(input) for dim in order)


@_spelled(torch.transpose, torch.swapaxes, methods=("transpose", "swapaxes"))
def _transpose(input: Any, dim0: int, dim1: int) -> Call:
    order = list(range(rank(input)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return functions.permute, input, tuple(order)


@_spelled(methods=("t",))
def _t(input: Any) -> Call:
    return (functions.permute, input, (1, 0)) if rank(input) == 2 else None


@_spelled(torch.unsqueeze, methods=("unsqueeze",))
def _unsqueeze(input: Any, dim: int) -> Call:
    return torch.unsqueeze, input, dim


@_spelled(operator.getitem)
def _getitem(input: Any, where: Any) -> Call:
    return (functions.index, input, where) if rank(input) >= 0 else None


@_spelled(torch.chunk, methods=("chunk",))
def _chunk(input: Any, chunks: int, dim: int = 0) -> Call:
    return functions.chunk, input, chunks, dim % rank(input)


@_spelled(torch.split, methods=("split",))
def _split(tensor: Any, split_size: Any, dim: int = 0) -> Call:
    size = (shape(tensor) or ())[dim]
    if not number(split_size) or not isinstance(size, int) or size % split_size:
        return None
    return functions.chunk, tensor, size // split_size, dim % rank(tensor)


@_spelled(torch.cat, torch.concat, methods=())
def _cat(tensors: Any, dim: int = 0) -> Call:
    return functions.cat, list(tensors), dim % rank(tensors[0])


@_spelled(F.interpolate)
def _interpolate(
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: Any = None,
    recompute_scale_factor: Any = None,
    antialias: bool = False,
) -> Call:
    before = shape(input)
    if mode != "nearest" or before is None or len(before) != 4:
        return None
    if size is not None:
        after = tuple(map(value, _pair(value(size))))
        doubled = same(after, (2 * before[2], 2 * before[3]))
    else:
        doubled = all(factor == 2 for factor in _pair(scale_factor))
    return (functions.upsample_nearest, input) if doubled else None


# Calls that give what they were given, where the model is not being trained and no dtype changes.


@_spelled(F.dropout)
def _dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Call:
    return (None, input) if not training or p == 0 else None


@_spelled(methods=("to", "type", "float", "type_as", "half", "double", "bfloat16"))
def _cast(input: Any, *others: Any, **options: Any) -> Call:
    return None  # `normalize` compares the results, whatever the arguments


def keeps_values(node: Node) -> bool:
    """Whether a cast changes neither dtype nor device."""
    if node.op != "call_method" or METHODS.get(str(node.target)) is not _cast or "memory_format" in node.kwargs:
        return False
    before, after = value(node.args[0]), value(node)
    return dtype(node) is not None and before.dtype is after.dtype and before.device == after.device
