"""Group norm with what follows it: the adaptive scale and shift, and SiLU. On tokens it moves before the reshape, where
the feature map still has its layout."""

from __future__ import annotations

import operator
from typing import Any

import torch.nn.functional as F
from torch import fx

from fastdiff import ops
from fastdiff.compiler import functions
from fastdiff.compiler.nodes import (
    Node,
    calls,
    find,
    insert,
    one_plus,
    only_user,
    operands,
    rank,
    same,
    same_dtype,
    shape,
    value,
)
from fastdiff.compiler.report import Notes

NAME = "group_norm_silu"


def apply(graph: fx.Graph, notes: Notes) -> None:
    """Replace what is found."""
    for node in find(graph, F.group_norm):
        x, groups, weight, bias, eps = node.args
        if not same_dtype(x, weight, bias):
            notes.missed(node, "weights of another dtype")
            continue
        end, scale, shift = _modulation(node)
        activation = "none"
        after = only_user(end)
        if after is not None and calls(after, F.silu):
            end, activation = after, "silu"
        source = _feature_map(x)
        if source is None:
            new = insert(end, ops.group_norm_silu.positional, x, groups, weight, bias, eps, scale, shift, activation)
        else:
            arguments = (source, groups, weight, bias, eps, scale, shift, activation)
            inner = insert(end, ops.group_norm_silu.positional, *arguments, example=value(source))
            new = insert(end, functions.reshape, inner, x.args[1])
        end.replace_all_uses_with(new)
        notes.matched(new)


def _modulation(norm: Node) -> tuple[Node, Any, Any]:
    """The end of (1 + scale) y + shift with scale and shift, or the norm itself and none."""
    product = only_user(norm)
    if product is None or not calls(product, operator.mul):
        return norm, None, None
    scale = one_plus(operands(product, norm))
    if scale is None or not _per_channel(scale, norm):
        return norm, None, None
    total = only_user(product)
    if total is None or not calls(total, operator.add):
        return product, scale, None
    shift = operands(total, product)
    return (total, scale, shift) if _per_channel(shift, norm) else (product, scale, None)


def _per_channel(node: Any, norm: Node) -> bool:
    """Whether this is (N, C, 1, ...), or (N, C) where there are no pixels."""
    sizes, wanted = shape(node), shape(norm)
    if sizes is None or wanted is None or len(sizes) != len(wanted) or not same(sizes[:2], wanted[:2]):
        return False
    return all(same(size, 1) for size in sizes[2:]) and value(node).dtype is value(norm).dtype


def _feature_map(x: Any) -> Any:
    """(N, C, H, W), of which x is a view as (N, C, H W); else None."""
    if not calls(x, functions.reshape) or rank(x) != 3 or rank(x.args[0]) != 4:
        return None
    inner = shape(x.args[0]) or ()
    return x.args[0] if same(inner[:2], (shape(x) or ())[:2]) else None
