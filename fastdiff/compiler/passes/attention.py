"""Attention, in the three usual spellings, as one operation that never makes the matrix of all queries by all keys.

F.scaled_dot_product_attention; softmax between two products, written with matmul, bmm or baddbmm (diffusers' older
processors, timm, latent-diffusion's autoencoder) or with einsum (guided-diffusion, latent-diffusion). The two products
are compared by their indices: a batch index is in both operands and the result, that of the queries only in q, of the
keys only in k and then in v.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fastdiff.compiler import functions
from fastdiff.compiler.fused import attention
from fastdiff.compiler.nodes import (
    Node,
    calls,
    dtype,
    find,
    insert,
    number,
    only_user,
    rank,
    replace,
    same,
    same_dtype,
    shape,
    value,
)
from fastdiff.compiler.report import Notes

NAME = "attention"


def apply(graph: fx.Graph, notes: Notes) -> None:
    """Replace what is found."""
    for node in find(graph, functions.dot_product_attention):
        _fused(node, notes)
    for node in find(graph, functions.softmax):
        _spelled_out(node, notes)


def _fused(node: Node, notes: Notes) -> None:
    q, k, v, mask, causal, scale = node.args
    if causal:
        notes.missed(node, "causal attention")
    elif not _takes(q, k, v, mask):
        notes.missed(node, f"q is {dtype(q)}, k {dtype(k)}, v {dtype(v)}, the mask {dtype(mask)}")
    elif mask is not None and value(mask).requires_grad:
        notes.missed(node, "the mask wants a gradient")
    elif rank(q) != 4 or not same(shape(q)[:2], shape(k)[:2]) or not same(shape(k)[:3], shape(v)[:3]):
        notes.missed(node, f"q is {shape(q)}, k {shape(k)}, v {shape(v)}")
    else:
        notes.matched(replace(node, attention, q, k, v, mask, scale))


def _takes(q: Any, k: Any, v: Any, mask: Any) -> bool:
    """Whether these have one dtype and are on one device; a mask may be boolean."""
    tensors = [value(each) for each in (q, k, v, mask) if each is not None]
    if not all(isinstance(each, Tensor) and each.device == tensors[0].device for each in tensors):
        return False
    return same_dtype(q, k, v) and (mask is None or same_dtype(q, mask) or dtype(mask) is torch.bool)


@dataclass
class _Product:
    """A product's operands with the names of their dimensions, permutations and factors taken away."""

    a: Any
    b: Any
    a_labels: str
    b_labels: str
    out: str
    scale: float


def _product(node: Any) -> _Product | None:
    if not calls(node, functions.product):
        return None
    equation, a, b, scale = node.args
    inputs, out = equation.split("->")
    (a, a_labels, a_scale), (b, b_labels, b_scale) = map(_peel, (a, b), inputs.split(","))
    return _Product(a, b, a_labels, b_labels, out, scale * a_scale * b_scale)


def _peel(node: Any, labels: str) -> tuple[Any, str, float]:
    """Below permutations and factors: the node, the names of its dimensions, the factor."""
    scale = 1.0
    while True:
        if calls(node, functions.permute):
            inner, dims = node.args
            names = [""] * len(dims)
            for position, dim in enumerate(dims):
                names[dim] = labels[position]
            node, labels = inner, "".join(names)
        elif (found := _scaled(node)) is not None:
            node, factor = found
            scale *= factor
        else:
            return node, labels, scale


def _scaled(node: Any) -> tuple[Any, float] | None:
    if calls(node, operator.mul):
        for x, factor in (node.args[:2], node.args[1::-1]):
            if number(factor) and isinstance(value(x), Tensor):
                return x, factor
    if calls(node, operator.truediv) and number(node.args[1]) and isinstance(value(node.args[0]), Tensor):
        return node.args[0], 1 / node.args[1]
    return None


def _spelled_out(softmax: Node, notes: Notes) -> None:
    scores, dim = softmax.args
    mask, scale = None, 1.0
    if calls(scores, operator.add) and isinstance(value(scores.args[1]), Tensor):
        scores, mask = scores.args[:2]
        if calls(mask, functions.product) and not calls(scores, functions.product):
            scores, mask = mask, scores
    while (found := _scaled(scores)) is not None:
        scores, factor = found
        scale *= factor
    first = _product(scores)
    if first is None:
        return  # a softmax for another purpose
    if mask is not None and rank(mask) != rank(scores):
        notes.missed(softmax, "the mask has other dimensions than the scores")
        return
    key = first.out[dim]
    q, q_labels, k, k_labels = first.a, first.a_labels, first.b, first.b_labels
    if key in q_labels:
        q, q_labels, k, k_labels = k, k_labels, q, q_labels
    batch = [x for x in first.out if x in q_labels and x in k_labels]
    rest = [x for x in first.out if x not in batch and x != key]
    summed = [x for x in q_labels if x in k_labels and x not in first.out]
    if key in q_labels or len(rest) != 1 or len(summed) != 1 or len(batch) > 2:
        notes.missed(softmax, f"a softmax over {first.a_labels},{first.b_labels}->{first.out}")
        return
    query, channel = rest[0], summed[0]

    # follow the maps to the second product, and call its dimensions by the first one's names
    maps, labels = softmax, first.out
    end = only_user(maps)
    while end is not None and calls(end, functions.permute):
        labels = "".join(labels[i] for i in end.args[1])
        maps, end = end, only_user(end)
    if end is None or not calls(end, functions.product):
        notes.missed(softmax, "the softmax itself is used, not only its product with values")
        return
    equation, a, b, last_scale = end.args
    inputs, out = equation.split("->")
    a_labels, b_labels = inputs.split(",")
    maps_labels, v, v_labels = (a_labels, b, b_labels) if a is maps else (b_labels, a, a_labels)
    names = dict(zip(maps_labels, labels))
    free = next(iter(set("uvwxyz") - set(labels)))
    v_labels, out = ("".join(names.get(x, free) for x in text) for text in (v_labels, out))
    v, v_labels, v_scale = _peel(v, v_labels)
    if v_scale != 1 or last_scale != 1 or sorted(v_labels) != sorted([*batch, key, free]):
        notes.missed(softmax, "values of other dimensions")
        return
    if sorted(out) != sorted([*batch, query, free]):
        notes.missed(softmax, "a result of other dimensions")
        return

    if not _takes(q, k, v, mask) or (mask is not None and dtype(mask) is torch.bool):  # a sum with it is no mask
        notes.missed(softmax, f"the mask is {dtype(mask)}, the queries are {dtype(q)}")
        return
    arranged = [
        _arrange(end, node, labels, [*batch, row, column])
        for node, labels, row, column in (
            (q, q_labels, query, channel),
            (k, k_labels, key, channel),
            (v, v_labels, key, free),
        )
    ]
    if mask is not None:
        mask = _arrange(end, mask, first.out, [*batch, query, key])
    result = _call(end, arranged, mask, scale * first.scale, len(batch))
    order = tuple([*batch, query, free].index(x) for x in out)
    if order != tuple(range(len(order))):
        result = insert(end, functions.permute, result, order)
    end.replace_all_uses_with(result)
    notes.matched(result)


def _arrange(like: Node, node: Node, labels: str, wanted: list[str]) -> Node:
    dims = tuple(labels.index(x) for x in wanted)
    if dims == tuple(range(len(dims))):
        return node
    return insert(like, functions.permute, node, dims, example=value(node).permute(dims))


def _call(end: Node, tensors: list[Node], mask: Node | None, scale: float, batch: int) -> Node:
    """The operation on q, k, v of (batch ..., S, D)."""
    if batch == 2:
        return insert(end, attention, *tensors, mask, scale)
    split = [_with_heads(node) for node in tensors] if batch == 1 and mask is None else []
    if split and all(split) and all(same(shape(x)[:2], shape(split[0])[:2]) for x in split):
        example = value(split[0]).new_empty((*shape(split[0])[:3], shape(split[2])[3]))
        heads = insert(end, attention, *split, None, scale, example=example)
        merged = insert(end, functions.reshape, heads, (-1, *_sizes(end, heads)))
        return merged
    for _ in range(2 - batch):
        tensors = [insert(end, _unsqueeze, x, example=value(x).unsqueeze(-3)) for x in tensors]
        mask = mask if mask is None else insert(end, _unsqueeze, mask, example=value(mask).unsqueeze(-3))
    result = insert(end, attention, *tensors, mask, scale, example=value(tensors[0]))
    for _ in range(2 - batch):
        result = insert(end, _squeeze, result)
    return result


def _with_heads(node: Node) -> Any:
    """(B, H, S, D), where the node merges its batch and heads to (B H, S, D); else None."""
    if not calls(node, functions.reshape) or rank(node) != 3 or rank(node.args[0]) != 4:
        return None
    return node.args[0] if same(shape(node)[1:], shape(node.args[0])[2:]) else None


def _sizes(end: Node, heads: Node) -> tuple[Any, ...]:
    """Queries and channels of the result, as the graph has them at run time."""
    return tuple(insert(end, size, heads, dim, example=_size_of(heads, dim)) for dim in (2, 3))


def _size_of(node: Node, dim: int) -> Any:
    return (shape(node) or ())[dim]


def size(x: Tensor, dim: int) -> int:
    """The size of a dimension, at run time."""
    return x.shape[dim]


def _unsqueeze(x: Tensor) -> Tensor:
    return x.unsqueeze(-3)


def _squeeze(x: Tensor) -> Tensor:
    return x.squeeze(-3)
