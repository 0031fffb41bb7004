"""What the model computes again though it cannot differ: constants such as the frequencies of an embedding, and the
same call with the same arguments, such as SiLU of the time's embedding in every block."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from fastdiff.compiler import effects, functions
from fastdiff.compiler.nodes import Node, value
from fastdiff.compiler.passes.normalize import FRESH
from fastdiff.compiler.report import Notes

NAME = "constant_folding"

# Calls whose result depends on nothing but their arguments.
_MAKERS = {torch.arange, torch.linspace, torch.zeros, torch.ones, torch.full, torch.tensor, torch.eye}
_PURE = FRESH | {
    functions.power,
    functions.reshape,
    functions.reshape_as,
    functions.permute,
    functions.index,
    functions.chunk,
    torch.unsqueeze,
    operator.getitem,
    operator.neg,
    operator.pow,
    *(torch.exp, torch.log, torch.sin, torch.cos, torch.pow, torch.sqrt, torch.rsqrt, torch.neg, torch.stack),
    torch.nn.functional.embedding,
    torch.nn.functional.pad,
}
_PURE_METHODS = {
    "to",
    "float",
    "type",
    "type_as",
    "expand",
    "flatten",
    "sin",
    "cos",
    "exp",
    "pow",
    "unflatten",
    "squeeze",
}
_LARGEST = 64 << 20  # bytes of a constant that is worth keeping
_PREFIX = "fastdiff_constant_"


def apply(graph: fx.Graph, notes: Notes) -> None:
    """Fold constants, then share what is computed twice."""
    _fold(graph, notes)
    _share(graph, notes)


def is_constant(node: Node) -> bool:
    """Whether the node stands for a constant that this pass made."""
    return node.op == "get_attr" and str(node.target).startswith(_PREFIX)


def is_pure(node: Node) -> bool:
    """Whether the same arguments give the same, and nothing else happens."""
    if effects.must_run(node):
        return False
    if node.op == "call_method":
        return node.target in _PURE_METHODS
    return node.op == "call_function" and (node.target in _PURE or node.target in _MAKERS)


def _fold(graph: fx.Graph, notes: Notes) -> None:
    known: dict[Node, Any] = {}
    for node in graph.nodes:
        if is_pure(node) and all(argument in known for argument in node.all_input_nodes):
            fake = value(node)
            if isinstance(fake, Tensor) and fake.nbytes > _LARGEST:
                continue
            arguments = fx.map_arg(node.args, lambda each: known[each])
            options = fx.map_arg(node.kwargs, lambda each: known[each])
            call: Any = getattr(arguments[0], str(node.target)) if node.op == "call_method" else node.target
            known[node] = call(*(arguments[1:] if node.op == "call_method" else arguments), **options)
    owner = graph.owning_module
    assert owner is not None
    kept: list[tuple[Tensor, Node]] = []  # those that differ, first to last
    for number, (node, constant) in enumerate(known.items()):
        if isinstance(constant, Tensor) and any(user not in known for user in node.users):
            new = next((other for same, other in kept if _equal(same, constant)), None)
            if new is None:
                name = f"{_PREFIX}{number}"
                owner.register_buffer(name, constant, persistent=False)
                with graph.inserting_before(node):
                    new = graph.get_attr(name)
                new.meta = dict(node.meta)
                kept.append((constant, new))
            node.replace_all_uses_with(new)
            notes.matched(new)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether one can stand for the other: the same numbers in the same places."""
    if a.dtype is not b.dtype or a.device != b.device or a.shape != b.shape or a.stride() != b.stride():
        return False
    return torch.equal(a, b)


def _share(graph: fx.Graph, notes: Notes) -> None:
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if not is_pure(node):
            continue
        key = _key((node.op, node.target, node.args, tuple(sorted(node.kwargs.items()))))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            notes.matches += 1


def _key(x: Any) -> Any:
    """Arguments as a dictionary's key; 1, 1.0 and True are different ones."""
    if isinstance(x, (list, tuple)):
        return (type(x).__name__, *map(_key, x))
    if isinstance(x, slice):
        return ("slice", _key(x.start), _key(x.stop), _key(x.step))
    if isinstance(x, fx.Node):
        return x
    return (type(x).__name__, str(x))
