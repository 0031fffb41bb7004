"""Linear layers with what follows them: GELU or SiLU, a gate and the residual; and GEGLU."""

from __future__ import annotations

import operator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx

from fastdiff.backend import functions
from fastdiff.backend.fused import geglu
from fastdiff.backend.matrix import Linear
from fastdiff.backend.nodes import (
    Node,
    calls,
    find,
    insert,
    only_user,
    operands,
    rank,
    same,
    same_dtype,
    shape,
    state,
    value,
)
from fastdiff.backend.report import Notes

NAME = "linear"


def apply(graph: fx.Graph, notes: Notes) -> None:
    """Replace what is found."""
    for node in find(graph, operator.mul):
        _geglu(node, notes)
    for node in find(graph, F.linear):
        x, weight, bias = node.args
        if not same_dtype(x, weight, bias) or rank(weight) != 2:
            notes.missed(node, "weights of another dtype")
            continue
        end, activation, gate, residual = node, None, None, None
        while (after := only_user(end)) is not None and residual is None:
            if calls(after, functions.gelu, F.silu) and activation is None and gate is None:
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


def _row(node: Any, linear: Node) -> bool:
    """Whether this is (B, 1, C), one gate for all rows of a sample."""
    sizes, wanted = shape(node), shape(linear)
    if sizes is None or wanted is None or len(sizes) != 3 or len(wanted) != 3 or not same_dtype(node, linear):
        return False
    return same(sizes[0], wanted[0]) and same(sizes[1], 1) and same(sizes[2], wanted[2])


def _geglu(node: Node, notes: Notes) -> None:
    """value * gelu(gate) of the two halves of one tensor."""
    for a, gate in (node.args[:2], node.args[1::-1]):
        if not calls(gate, functions.gelu) or gate.args[1] != "none" or len(gate.users) != 1:
            continue
        halves = [half for half in (a, gate.args[0]) if calls(half, operator.getitem)]
        if [half.args[1] for half in halves] != [0, 1] or halves[0].args[0] is not halves[1].args[0]:
            continue
        source = halves[0].args[0]
        if calls(source, functions.chunk) and source.args[1] == 2 and source.args[2] == rank(source.args[0]) - 1:
            size = (shape(source.args[0]) or (1,))[-1]
            if isinstance(size, int) and size % 2 == 0 and isinstance(value(node), Tensor):
                new = insert(node, geglu, source.args[0])
                node.replace_all_uses_with(new)
                notes.matched(new)
                return
