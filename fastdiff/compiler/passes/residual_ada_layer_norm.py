"""The residual before a layer norm, h = residual + gate * y, with the norm of h and its modulation, in one pass over
memory: within a block of a transformer and from one block to the next."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fastdiff import ops
from fastdiff.compiler.fused import adds_residual
from fastdiff.compiler.nodes import Node, calls, find, insert, rank, same, same_dtype, shape, value
from fastdiff.compiler.report import Notes

NAME = "residual_ada_layer_norm"
# The modulated norm: as the pass before made it, and as fastdiff's own models call it.
_MODULATED = (ops.ada_layer_norm.positional, torch.ops.fastdiff.ada_layer_norm.default)


def apply(graph: fx.Graph, notes: Notes) -> None:
    """Replace what is found."""
    for norm in find(graph, *_MODULATED, F.layer_norm):
        if calls(norm, F.layer_norm):
            h, normalized, weight, bias, eps = norm.args
            scale = shift = None
            if len(value(normalized)) != 1 or (weight is None and bias is not None) or not same_dtype(h, weight, bias):
                continue
        else:
            h, scale, shift, weight, bias, eps = norm.args
        parts = _parts(h)
        if parts is None:
            continue
        y, residual, gate = parts
        if calls(y, F.linear) and adds_residual(value(y.args[0]), value(y.args[1])):
            notes.missed(norm, "the kernel of the linear layer before adds the residual itself")
            continue
        order = {node: place for place, node in enumerate(graph.nodes)}
        if any(order[user] < order[norm] for user in h.users if user is not norm):
            notes.missed(norm, "the sum is used before its norm is computed")
            continue
        arguments = (y, residual, gate, scale, shift, weight, bias, eps)
        both = insert(norm, ops.residual_ada_layer_norm.positional, *arguments, example=(value(h), value(norm)))
        for place, old in enumerate((h, norm)):
            new = insert(norm, operator.getitem, both, place)
            new.meta = dict(old.meta)
            old.replace_all_uses_with(new)
        notes.matched(both)


def _parts(h: Any) -> tuple[Any, Any, Any] | None:
    """y, residual and gate or None of h = residual + gate * y, all (B, S, C); None where it is something else."""
    if rank(h) != 3:
        return None
    if calls(h, torch.addcmul) and len(h.args) == 3 and not h.kwargs:
        residual, a, b = h.args
        gate, y = (a, b) if _is_gate(a, h) else (b, a)
        return (y, residual, gate) if _is_whole(residual, h) and _is_gate(gate, h) and _is_whole(y, h) else None
    if not calls(h, operator.add) or not all(_is_whole(each, h) for each in h.args[:2]):
        return None
    for product, residual in (h.args[:2], h.args[1::-1]):
        if calls(product, operator.mul) and len(product.users) == 1:
            for gate, y in (product.args[:2], product.args[1::-1]):
                if _is_gate(gate, h) and _is_whole(y, h):
                    return y, residual, gate
    y, residual = sorted(h.args[:2], key=lambda each: not calls(each, F.linear))
    return y, residual, None


def _is_whole(node: Any, h: Node) -> bool:
    """Whether this is a tensor of h's shape and dtype."""
    return isinstance(value(node), Tensor) and same(shape(node), shape(h)) and same_dtype(h, node)


def _is_gate(node: Any, h: Node) -> bool:
    """Whether this is (B, 1, C), of h's dtype."""
    sizes, wanted = shape(node), shape(h)
    if sizes is None or len(sizes) != 3 or not same_dtype(h, node):
        return False
    return same(sizes[0], wanted[0]) and same(sizes[1], 1) and same(sizes[2], wanted[2])
