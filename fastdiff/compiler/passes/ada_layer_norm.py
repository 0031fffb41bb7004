"""Layer norm and the modulation by a condition, (1 + scale) LN(x) + shift, in one pass over memory."""

from __future__ import annotations

import operator
from typing import Any

import torch.nn.functional as F
from torch import fx

from fastdiff import ops
from fastdiff.compiler.nodes import (
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

NAME = "ada_layer_norm"


def apply(graph: fx.Graph, notes: Notes) -> None:
    """Replace what is found."""
    for node in find(graph, F.layer_norm):
        x, normalized, weight, bias, eps = node.args
        if rank(x) != 3 or len(value(normalized)) != 1 or (weight is None and bias is not None):
            continue
        if not same_dtype(x, weight, bias):
            notes.missed(node, "weights of another dtype")
            continue
        product = only_user(node)
        scale = one_plus(operands(product, node)) if product is not None and calls(product, operator.mul) else None
        end = only_user(product) if scale is not None and product is not None else None
        if end is None or not calls(end, operator.add):
            continue
        shift = operands(end, product)
        if not _fits(scale, x) or not _fits(shift, x):
            notes.missed(node, f"scale is {shape(scale)}, shift {shape(shift)}, x {shape(x)}")
            continue
        new = insert(end, ops.ada_layer_norm.positional, x, scale, shift, weight, bias, eps)
        end.replace_all_uses_with(new)
        notes.matched(new)


def _fits(node: Any, x: Any) -> bool:
    """Whether this is (B, 1, C) or (B, S, C)."""
    sizes, wanted = shape(node), shape(x)
    if sizes is None or wanted is None or len(sizes) != 3 or value(node).dtype is not value(x).dtype:
        return False
    rows = same(sizes[1], 1) or same(sizes[1], wanted[1])
    return same(sizes[0], wanted[0]) and rows and same(sizes[2], wanted[2])
