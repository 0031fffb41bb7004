"""Linear layers with what follows them: GELU or SiLU, a gate and the residual; GEGLU and its kin; and the layers of one
input, such as q, k and v, as one."""

from __future__ import annotations

import operator
from collections import defaultdict
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx

from fastdiff.compiler import effects, functions, precision
from fastdiff.compiler.fused import columns, gated, linear, worth_joining
from fastdiff.compiler.nodes import (
    Node,
    calls,
    find,
    follow,
    insert,
    only_user,
    operands,
    rank,
    replace,
    same,
    same_dtype,
    shape,
    value,
)
from fastdiff.compiler.report import Notes

NAME = "linear"


def apply(graph: fx.Graph, notes: Notes) -> None:
    """Replace what is found."""
    for node in find(graph, operator.mul):
        _glu(node, notes)
    graph.eliminate_dead_code(effects.must_run)
    _join(graph, notes)
    graph.eliminate_dead_code(effects.must_run)
    for node in find(graph, F.linear):
        x, weight, bias = node.args
        if not same_dtype(x, weight, bias) or rank(weight) != 2:
            notes.missed(node, "weights of another dtype")
            continue
        epilogue = _Epilogue(node)
        end = follow(node, epilogue.takes)
        notes.matched(
            replace(end, linear, x, weight, bias, epilogue.gate, epilogue.residual, epilogue.activation or "none")
        )


_GELU = {"none": "gelu", "tanh": "gelu_tanh"}


class _Epilogue:
    """What follows a layer: an activation, a gate, a residual, in this order."""

    def __init__(self, layer: Node) -> None:
        self.layer = layer
        self.activation: str | None = None
        self.gate: Any = None
        self.residual: Any = None

    def takes(self, after: Node, before: Node) -> bool:
        """Whether the next node is part of it."""
        if self.residual is not None:
            return False
        if calls(after, functions.gelu, F.silu) and self.activation is None and self.gate is None:
            self.activation = "silu" if calls(after, F.silu) else _GELU[after.args[1]]
            return True
        other = operands(after, before) if calls(after, operator.mul, operator.add) else None
        if calls(after, operator.mul) and self.gate is None and _row(other, self.layer):
            self.gate = other
            return True
        if calls(after, operator.add) and same_dtype(self.layer, other) and same(shape(other), shape(self.layer)):
            self.residual = other
            return True
        return False


def _join(graph: fx.Graph, notes: Notes) -> None:
    """Two or three layers of one input, of which nothing is asked but their columns, as one product."""
    layers: dict[Node, list[Node]] = defaultdict(list)
    for node in find(graph, F.linear):
        x, weight, bias = node.args
        seen_as_heads = all(calls(user, functions.reshape, functions.permute) for user in node.users)
        if precision.of(weight) is not None:
            continue  # x is rounded for each layer of its own, which takes little
        if seen_as_heads and rank(x) == 3 and rank(weight) == 2 and same_dtype(x, weight, bias):
            layers[x].append(node)
    for x, found in layers.items():
        sizes = [shape(node.args[1])[0] for node in found]
        if len(found) not in (2, 3) or not worth_joining(value(x), sum(sizes)):
            continue
        example = value(found[0]).new_empty((*shape(found[0])[:2], sum(sizes)))
        (first, *more) = ((node.args[1], node.args[2]) for node in found)
        others = [each for pair in more for each in pair]
        joint = insert(found[0], linear, x, *first, None, None, "none", False, *others, example=example)
        for number, node in enumerate(found):
            node.replace_all_uses_with(insert(node, columns, joint, sum(sizes[:number]), sizes[number]))
            notes.matched(joint)


def _row(node: Any, linear: Node) -> bool:
    """Whether this is (B, 1, C), one gate for all rows of a sample."""
    sizes, wanted = shape(node), shape(linear)
    if sizes is None or wanted is None or len(sizes) != 3 or len(wanted) != 3 or not same_dtype(node, linear):
        return False
    return same(sizes[0], wanted[0]) and same(sizes[1], 1) and same(sizes[2], wanted[2])


def _glu(node: Node, notes: Notes) -> None:
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
        layer = calls(source, F.linear) and alone and same_dtype(*source.args) and rank(source.args[1]) == 2
        if layer:
            notes.matched(replace(node, linear, *source.args, None, None, activation, True))
        elif same_dtype(node, source) and activation == "gelu":
            new = insert(node, gated, source)
            node.replace_all_uses_with(new)
            notes.matched(new)
        return
