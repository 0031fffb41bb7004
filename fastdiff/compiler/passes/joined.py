"""Layers of one input as one product, on a GPU: q, k and v of a block, keys and values of the text in all blocks, the
projections of one embedding of the time. The weights are moved next to each other, see `compiler.joined`."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import torch.nn.functional as F
from torch import fx

from fastdiff.compiler import functions
from fastdiff.compiler.fused import attention, columns
from fastdiff.compiler.joined import JoinedLinear
from fastdiff.compiler.nodes import (
    Node,
    calls,
    find,
    insert,
    insert_module,
    is_weight,
    on_gpu,
    rank,
    same,
    same_dtype,
    shape,
)
from fastdiff.compiler.nodes import value as value_of
from fastdiff.compiler.report import Notes

NAME = "joined"


def apply(graph: fx.Graph, notes: Notes) -> None:
    """Replace what is found."""
    if not on_gpu(graph):
        return
    layers: dict[Any, list[Node]] = defaultdict(list)
    for node in find(graph, F.linear):
        x, _, bias = node.args
        if joinable(node) and (_is_vector(x) or _seen_as_heads(node)):
            layers[x, bias is None].append(node)
    for found in layers.values():
        if len(found) > 1 and distinct(found):
            _join(found)
            notes.matches += len(found)


def joinable(layer: Node) -> bool:
    """Whether the weights of a linear layer are parameters, of its input's type."""
    x, weight, bias = layer.args
    if not is_weight(weight) or (bias is not None and not is_weight(bias)):
        return False
    return rank(weight) == 2 and rank(x) > 1 and same_dtype(x, weight, bias) and isinstance(shape(weight)[0], int)


def distinct(layers: list[Node]) -> bool:
    """Whether no two layers have a parameter in common."""
    tensors = [tensor for layer in layers for tensor in layer.args[1:] if tensor is not None]
    return len(set(tensors)) == len(tensors)


def join(layers: list[Node], like: Node) -> Node:
    """One product of the layers' common input, in front of `like`."""
    x, _, bias = layers[0].args
    weights = [layer.args[1] for layer in layers]
    biases = [] if bias is None else [layer.args[2] for layer in layers]
    outputs = sum(shape(weight)[0] for weight in weights)
    example = value_of(layers[0]).new_empty((*shape(layers[0])[:-1], outputs))
    module = JoinedLinear(len(layers), bool(biases))
    joint = insert_module(like, module, x, *weights, *biases, example=example)
    joint.meta["pass"] = NAME
    return joint


def _join(layers: list[Node]) -> None:
    joint = join(layers, layers[0])
    sizes = [shape(layer.args[1])[0] for layer in layers]
    for layer, size, end in zip(layers, sizes, itertools.accumulate(sizes)):
        layer.replace_all_uses_with(insert(layer, columns, joint, end - size, size))


def _is_vector(x: Any) -> bool:
    """Whether this is one vector a sample, of which a layer makes no large result."""
    sizes = shape(x)
    return sizes is not None and (len(sizes) == 2 or (len(sizes) == 3 and same(sizes[1], 1)))


def _seen_as_heads(layer: Node) -> bool:
    """Whether a layer's result is only looked at, and read by attention or copied, whose reading takes any strides."""
    return all(
        calls(user, attention, functions.cat)
        or (calls(user, functions.reshape, functions.permute) and _seen_as_heads(user))
        for user in layer.users
    )
