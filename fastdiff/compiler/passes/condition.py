"""What the blocks make of the condition, at once instead of block by block, on a GPU.

In a DiT each block has its own embedding of the time and the label, and its own modulation: small layers that read
their weights for a few rows, and do not depend on the picture. They are moved to the front and go in lockstep: calls
that do the same with tensors of the same shapes become one call of stacked tensors, layers one batch of products.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastdiff.compiler import functions
from fastdiff.compiler.joined import StackedEmbedding, StackedLinear
from fastdiff.compiler.nodes import Node, calls, dtype, insert, insert_module, is_weight, on_gpu, rank, shape, value
from fastdiff.compiler.passes.constant_folding import is_pure
from fastdiff.compiler.passes.joined import distinct, join, joinable
from fastdiff.compiler.report import Notes

NAME = "condition"
_LARGEST = 1 << 22  # numbers of a tensor that is taken for a condition

_UNARY = (F.silu, functions.gelu, torch.sigmoid)
_BINARY = (operator.add, operator.mul)


def apply(graph: fx.Graph, notes: Notes) -> None:
    """Replace what is found."""
    if not on_gpu(graph):
        return
    levels = _levels(graph)
    if not any(len(group) > 1 for level in levels.values() for group in _groups(level)):
        return
    _to_the_front(graph, levels)
    stacks = _Stacks()
    for _, level in sorted(levels.items()):
        for group in _groups(level):
            if len(group) > 1 and _merge(group, stacks):
                notes.matches += len(group)


def _levels(graph: fx.Graph) -> dict[int, list[Node]]:
    """What depends on inputs and weights through vectors alone, by the length of the way to it."""
    depth: dict[Node, int] = {}
    levels: dict[int, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            depth[node] = 0
        elif is_pure(node) and _is_small(node) and all(each in depth for each in node.all_input_nodes):
            depth[node] = 1 + max((depth[each] for each in node.all_input_nodes), default=0)
            levels[depth[node]].append(node)
    return levels


def _is_small(node: Node) -> bool:
    """Whether this is a vector or a few of them."""
    fake = value(node)
    if not isinstance(fake, Tensor) or fake.ndim > 2:
        return False
    numbers = fake.numel()
    return not isinstance(numbers, int) or numbers <= _LARGEST


def _groups(level: list[Node]) -> list[list[Node]]:
    """Calls that do the same with tensors of the same shapes, in the graph's order."""
    found: dict[Any, list[Node]] = defaultdict(list)
    for node in level:
        if (kind := _kind(node)) is not None:
            found[kind].append(node)
    return list(found.values())


def _kind(node: Node) -> Any:
    """What must be the same of calls that become one; None where the call stays."""
    about = node.target, dtype(node), str(shape(node))
    if calls(node, F.linear):
        x, weight, bias = node.args
        return (*about, str(shape(x)), str(shape(weight)), bias is None) if joinable(node) and rank(x) == 2 else None
    if calls(node, F.embedding):
        indices, table, *rest = node.args
        plain = not node.kwargs and rank(indices) == 1 and is_weight(table) and rest[1:2] in ([], [None])
        return (*about, indices, str(shape(table))) if plain else None
    if calls(node, *_UNARY):
        return (*about, dtype(node.args[0]), *map(str, node.args[1:]))
    if calls(node, *_BINARY):
        whole = all(dtype(x) is dtype(node) and str(shape(x)) == about[2] for x in node.args[:2])
        return about if whole and len(node.args) == 2 else None
    return None


def _to_the_front(graph: fx.Graph, levels: dict[int, list[Node]]) -> None:
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    constants = [node for node in graph.nodes if node.op == "get_attr"]
    for node in (*constants, *(node for _, level in sorted(levels.items()) for node in level)):
        last.append(node)
        last = node


class _Stacks:
    """Which nodes are the parts of which stacked tensor."""

    def __init__(self) -> None:
        self._parts: dict[Node, tuple[Node, int]] = {}
        self._sizes: dict[Node, int] = {}

    def known(self, nodes: list[Node]) -> Node | None:
        """The tensor whose parts these are, all of them in their order."""
        places = [self._parts.get(node, (None, -1)) for node in nodes]
        first = places[0][0]
        if first is None or self._sizes[first] != len(nodes):
            return None
        return first if places == [(first, place) for place in range(len(nodes))] else None

    def of(self, nodes: list[Node], like: Node) -> Node:
        """These as one tensor, in front of `like`."""
        found = self.known(nodes)
        return found or insert(like, torch.stack, list(nodes), example=_example(nodes[0], len(nodes)))

    def put(self, stack: Node, nodes: list[Node], like: Node) -> None:
        """Let the parts of the stack stand for the nodes."""
        self._sizes[stack] = len(nodes)
        stack.meta["pass"] = NAME
        for place, node in enumerate(nodes):
            part = insert(like, functions.index, stack, place, example=value(node))
            part.meta["origin"] = node.meta.get("origin")
            node.replace_all_uses_with(part)
            self._parts[part] = stack, place


def _merge(nodes: list[Node], stacks: _Stacks) -> bool:
    """One call in the place of several; False where that gains nothing."""
    like, count = nodes[-1], len(nodes)
    if calls(nodes[0], F.linear):
        return distinct(nodes) and _merge_layers(nodes, stacks)
    if calls(nodes[0], F.embedding):
        tables = [node.args[1] for node in nodes]
        if len(set(tables)) != count:
            return False
        arguments = (nodes[0].args[0], *tables)
        new = insert_module(like, StackedEmbedding(count), *arguments, example=_example(nodes[0], count))
        stacks.put(new, nodes, like)
        return True
    tensors = 1 if calls(nodes[0], *_UNARY) else 2
    columns = [[node.args[place] for node in nodes] for place in range(tensors)]
    if sum(stacks.known(column) is None for column in columns) >= count - 1:
        return False  # the copies are as many launches
    given = [stacks.of(column, like) for column in columns]
    arguments = (*given, *nodes[0].args[tensors:])
    stacks.put(insert(like, nodes[0].target, *arguments, example=_example(nodes[0], count)), nodes, like)
    return True


def _merge_layers(layers: list[Node], stacks: _Stacks) -> bool:
    like, count = layers[-1], len(layers)
    inputs = [layer.args[0] for layer in layers]
    if len(set(inputs)) == 1:
        if not any(calls(user, F.linear, *_UNARY, *_BINARY) for layer in layers for user in layer.users):
            return False  # nothing follows in lockstep: the pass "joined" takes layers of all sizes
        size = shape(layers[0])[1]
        example = _example(layers[0], count)
        rows = insert(like, functions.reshape, join(layers, like), (-1, count, size), example=example.transpose(0, 1))
        stack = insert(like, functions.permute, rows, (1, 0, 2), example=example)
    elif len(set(inputs)) == count:
        biased = layers[0].args[2] is not None
        tensors = [layer.args[place] for place in ((1, 2) if biased else (1,)) for layer in layers]
        module: nn.Module = StackedLinear(count, biased)
        stack = insert_module(
            like, module, stacks.of(inputs, like), *tensors, example=_example(layers[0], count)
        )  # fmt: skip
    else:
        return False
    stacks.put(stack, layers, like)
    return True


def _example(node: Node, count: int) -> Tensor:
    fake = value(node)
    assert isinstance(fake, Tensor)
    return fake.new_empty((count, *fake.shape))
