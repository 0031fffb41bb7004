"""The graph in the vocabulary of `functions`, without what does nothing: dropout, casts to the same dtype, division by
1, permutations that cancel. Mutations become results."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fastdiff.compiler import effects, functions, mutations, spellings
from fastdiff.compiler.errors import Unsupported
from fastdiff.compiler.nodes import calls, dtype, find, forward, number, replace, same, shape

# Operations whose result shares no memory with anything else.
FRESH: set[Any] = {
    torch.conv2d,
    F.linear,
    F.silu,
    torch.sigmoid,
    functions.gelu,
    functions.softmax,
    functions.product,
    functions.dot_product_attention,
    functions.upsample_nearest,
    functions.cat,
    F.group_norm,
    F.layer_norm,
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
}
# What passes look for by PyTorch's own names.
_WORDS = FRESH | {torch.unsqueeze}


def apply(graph: fx.Graph) -> int:
    """Rewrite the graph; returns how many calls the vocabulary has words for. Raises Unsupported for a mutation that
    others may see."""
    mutations.apply(graph)
    understood = 0
    effects.note(graph)
    for node in list(graph.nodes):
        if effects.written(node):
            raise Unsupported(f"{node.name} writes to {', '.join(each.name for each in effects.written(node))}")
        call = spellings.canonical(node)
        if call is None:
            if spellings.keeps_values(node):
                forward(node, node.args[0])
            elif node.op == "call_function" and node.target in _WORDS:
                node.target = functions.as_written(node.target)  # no pass takes it for one of its own
            continue
        understood += 1
        if call[0] is None:
            forward(node, call[1])
        else:
            node.op, node.target, node.args, node.kwargs = "call_function", call[0], tuple(call[1:]), {}
    graph.eliminate_dead_code(effects.must_run)
    _shorten(graph)
    graph.eliminate_dead_code(effects.must_run)
    return understood


def _shorten(graph: fx.Graph) -> None:
    for node in find(graph, operator.truediv, operator.mul):
        a, b = node.args[:2]
        if number(b) and b == 1 and dtype(a) is dtype(node):
            forward(node, a)
        elif node.target is operator.mul and number(a) and a == 1 and dtype(b) is dtype(node):
            forward(node, b)
        elif node.target is operator.mul and (gated := _silu(a, b)) is not None and dtype(gated) is dtype(node):
            replace(node, F.silu, gated)
    for node in find(graph, functions.permute):
        inner, dims = node.args
        if calls(inner, functions.permute):
            dims = tuple(inner.args[1][dim] for dim in dims)
            inner = inner.args[0]
            node.args = (inner, dims)
        if dims == tuple(range(len(dims))):
            forward(node, inner)
    for node in find(graph, functions.reshape, functions.reshape_as):
        while calls(node.args[0], functions.reshape, functions.reshape_as):
            node.args = (node.args[0].args[0], node.args[1])
        if same(shape(node), shape(node.args[0])):
            forward(node, node.args[0])


def _silu(a: Any, b: Any) -> Any:
    """x, where this is x and sigmoid(x)."""
    for x, gate in ((a, b), (b, a)):
        if calls(gate, torch.sigmoid) and gate.args[0] is x:
            return x
    return None
