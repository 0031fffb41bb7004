"""The graph in the vocabulary of `functions`, without what does nothing: dropout, casts to the same dtype, division by
1, permutations that cancel. Mutations become results where nobody else can see them."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fastdiff.compiler import functions, spellings
from fastdiff.compiler.errors import Unsupported
from fastdiff.compiler.nodes import Node, calls, dtype, find, forward, number, rank, replace, same, shape, value

# Operations whose result shares no memory with anything else.
FRESH = {
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
_FRESH: list[Any] = list(FRESH)
# What passes look for by PyTorch's own names.
_WORDS = FRESH | {torch.unsqueeze}
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


def apply(graph: fx.Graph) -> int:
    """Rewrite the graph; returns how many calls the vocabulary has words for. Raises Unsupported for a mutation that
    others may see."""
    understood = 0
    for node in list(graph.nodes):
        mutated = _mutated(node)
        call = spellings.canonical(node)
        if mutated is not None:
            call = _without_mutation(node, mutated, call)
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
    graph.eliminate_dead_code()
    _shorten(graph)
    graph.eliminate_dead_code()
    return understood


def _mutated(node: Node) -> Any:
    """What the call writes to, or None."""
    if node.op == "call_function":
        if node.target in (operator.setitem, operator.delitem) or "out" in node.kwargs:
            raise Unsupported(f"{node.name} writes to a tensor")
        if node.target in _IN_PLACE or node.kwargs.get("inplace") is True:
            return node.args[0]
        name = getattr(node.target, "__name__", "")
        if name.endswith("_") and not name.startswith("_") and rank(node) >= 0:
            return node.args[0]
    if node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__"):
        return node.args[0]
    return None


def _without_mutation(node: Node, mutated: Node, call: Any) -> Any:
    """The call that gives a result of its own, used from here on; only where no alias of what it wrote to is known."""
    if not isinstance(value(mutated), Tensor):
        return call  # numbers
    order = {each: position for position, each in enumerate(node.graph.nodes)}
    others = [user for user in mutated.users if user is not node]
    seen = [user for user in others if order[user] < order[node]]
    if not all(calls(each, *_FRESH) for each in (mutated, *seen)):
        raise Unsupported(f"{node.name} changes {mutated.name} in place, of which there may be views")
    if not same(shape(node), shape(mutated)) or dtype(node) is not dtype(mutated):
        raise Unsupported(f"{node.name} changes {mutated.name} in place to another shape or dtype")
    mutated.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node and order[user] > order[node])
    if call is not None:
        return call
    if node.op == "call_method" and hasattr(Tensor, str(node.target)[:-1]):
        node.target = str(node.target)[:-1]
        return spellings.canonical(node)
    if node.op == "call_function" and node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
        return spellings.canonical(node)
    raise Unsupported(f"{node.name} changes {mutated.name} in place")


def _shorten(graph: fx.Graph) -> None:
    for node in find(graph, operator.truediv, operator.mul):
        a, b = node.args[:2]
        if number(b) and b == 1 and dtype(a) is dtype(node):
            forward(node, a)
        elif node.target is operator.mul and number(a) and a == 1 and dtype(b) is dtype(node):
            forward(node, b)
        elif node.target is operator.mul and (gated := _silu(a, b)) is not None:
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
