"""Linear layers with what follows them: GELU or SiLU, a gate and the residual; GEGLU and its kin; and the layers of one
input, such as q, k and v, as one."""

from __future__ import annotations

import operator
from collections import defaultdict
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx

from fastdiff.compiler import functions
from fastdiff.compiler.fused import geglu
from fastdiff.compiler.matrix import Linear, Linears, columns, worth_joining
from fastdiff.compiler.nodes import (
    Node,
    calls,
    find,
    insert,
    insert_module,
    only_user,
    operands,
    rank,
    same,
    same_dtype,
    shape,
    state,
    value,
)
from fastdiff.compiler.report import Notes

NAME = "linear"


def apply(graph: fx.Graph, notes: Notes) -> None:
    """Replace what is found."""
    for node in find(graph, operator.mul):
        _geglu(node, notes)
    graph.eliminate_dead_code()
    _join(graph, notes)
    graph.eliminate_dead_code()
    for node in find(graph, F.linear):
        x, weight, bias = node.args
        if not same_dtype(x, weight, bias) or rank(weight) != 2:
            notes.missed(node, "weights of another dtype")
            continue
        end, activation, gate, residual = node, "none", None, None
        while (after := only_user(end)) is not None and residual is None:
            if calls(after, functions.gelu, F.silu) and activation == "none" and gate is None:
                activation = "silu" if calls(after, F.silu) else _GELU[after.args[1]]
            elif calls(after, operator.mul) and gate is None and _row(operands(after, end), node):
                gate = operands(after, end)
            elif calls(after, operator.add) and same_dtype(node, operands(after, end)):
                if not same(shape(operands(after, end)), shape(node)):
                    break
                residual = operands(after, end)
            else:
                break
            end = after
        notes.matched(state(end, Linear(activation), x, weight, bias, gate, residual))


_GELU = {"none": "gelu", "tanh": "gelu_tanh"}


def _join(graph: fx.Graph, notes: Notes) -> None:
    """Two or three layers of one input, of which nothing is asked but their columns, as one product."""
    layers: dict[Node, list[Node]] = defaultdict(list)
    for node in find(graph, F.linear):
        x, weight, bias = node.args
        seen_as_heads = all(calls(user, functions.reshape, functions.permute) for user in node.users)
        if seen_as_heads and rank(x) == 3 and rank(weight) == 2 and same_dtype(x, weight, bias):
            layers[x].append(node)
    for x, found in layers.items():
        sizes = [shape(node.args[1])[0] for node in found]
        if len(found) not in (2, 3) or not worth_joining(value(x), sum(sizes)):
            continue
        biases = [node.args[2] for node in found]
        example = value(found[0]).new_empty((*shape(found[0])[:2], sum(sizes)))
        weights = [node.args[1] for node in found]
        given = [bias for bias in biases if bias is not None]
        layer = Linears(tuple(bias is not None for bias in biases))
        joint = insert_module(found[0], layer, x, *weights, *given, example=example)
        for number, node in enumerate(found):
            node.replace_all_uses_with(insert(node, columns, joint, sum(sizes[:number]), sizes[number]))
            notes.matched(joint)


def _row(node: Any, linear: Node) -> bool:
    """Whether this is (B, 1, C), one gate for all rows of a sample."""
    sizes, wanted = shape(node), shape(linear)
    if sizes is None or wanted is None or len(sizes) != 3 or len(wanted) != 3 or not same_dtype(node, linear):
        return False
    return same(sizes[0], wanted[0]) and same(sizes[1], 1) and same(sizes[2], wanted[2])


def _geglu(node: Node, notes: Notes) -> None:
    """value * act(gate) of the two halves of one tensor, which is a layer's result where that has no other use."""
    for a, gate in (node.args[:2], node.args[1::-1]):
        if not calls(gate, functions.gelu, F.silu) or len(gate.users) != 1:
            continue
        halves = [half for half in (a, gate.args[0]) if calls(half, operator.getitem)]
        if [half.args[1] for half in halves] != [0, 1] or halves[0].args[0] is not halves[1].args[0]:
            continue
        chunks = halves[0].args[0]
        if not calls(chunks, functions.chunk) or chunks.args[1] != 2 or chunks.args[2] != rank(chunks.args[0]) - 1:
            continue
        source, activation = chunks.args[0], "silu" if calls(gate, F.silu) else _GELU[gate.args[1]]
        size = (shape(source) or (1,))[-1]
        if not isinstance(size, int) or size % 2 or not isinstance(value(node), Tensor):
            continue
        alone = only_user(source) is chunks and all(len(half.users) == 1 for half in halves) and len(chunks.users) == 2
        if calls(source, F.linear) and alone and same_dtype(*source.args) and rank(source.args[1]) == 2:
            notes.matched(state(node, Linear(activation, glu=True), *source.args, None, None))
        elif activation == "gelu":
            new = insert(node, geglu, source)
            node.replace_all_uses_with(new)
            notes.matched(new)
        return
