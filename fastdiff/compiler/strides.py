"""Strides as the original gives them: of a graph's results, and of what an operation reads by its strides."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastdiff.compiler import effects, single
from fastdiff.compiler.errors import Unsupported
from fastdiff.compiler.nodes import CROSSING, Node, value

# Operations whose result, or whether there is one, depends on the strides of what they are given. Of the views only
# those are left under this name that look at the same memory as another dtype.
_READ = {"stride", "as_strided", "data_ptr", "storage_offset", "is_contiguous", "view_as_complex", "view", "set_"}
# Of sizes, in the expressions that symbols make.
_FUNCTIONS = {
    "FloorDiv": operator.floordiv, "CleanDiv": operator.floordiv, "Mod": operator.mod, "PythonMod": operator.mod,
    "Max": max, "Min": min,
}  # fmt: skip


class Strided(nn.Module):
    """A tensor as it is, or a copy of it with these strides where it has others.

    strides: numbers, or a function of the sizes that are symbols, or None for those of a contiguous tensor.
    """

    def __init__(self, strides: tuple[int, ...] | Callable[..., tuple[int, ...]] | None) -> None:
        super().__init__()
        self._strides = strides

    def forward(self, x: Tensor, *sizes: int) -> Tensor:
        if self._strides is None:
            return x.contiguous()
        wanted = self._strides if isinstance(self._strides, tuple) else self._strides(*sizes)
        strides = x.stride()
        if strides == wanted:
            return x
        if all(a == b or size < 2 for a, b, size in zip(strides, wanted, x.shape)):
            return x.as_strided(x.shape, wanted)
        return torch.empty_strided(x.shape, wanted, dtype=x.dtype, device=x.device).copy_(x)


def note(graph: fx.Graph) -> None:
    """Keep with the captured graph what its results are, for `restore`: passes put other nodes in their place."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    others = single.real_strides(graph)
    found: list[Any] = []

    def keep(node: Node) -> None:
        fake = value(node)
        found.append(single.with_strides(fake, others[node]) if node in others else fake)

    fx.map_arg(output.args, keep)
    output.meta["results"] = found


def restore(graph: fx.Graph) -> None:
    """Give results, and what is read by its strides, the strides that they have in the original."""
    owner = graph.owning_module
    assert owner is not None  # passes work on graphs of modules
    for node in list(graph.nodes):
        name = str(getattr(node.target, "__name__", node.target))
        if node.op in ("call_function", "call_method") and name.partition(".")[0] in _READ:
            if name.startswith("as_strided") and not _whole(value(node.args[0])):
                raise Unsupported(f"{node.name} looks at the memory beside {node.args[0].name}")
            _restore_inputs(graph, node)
        elif node.op in ("call_function", "call_method") and effects.of(node).must_run:
            _restore_inputs(graph, node)  # random numbers are drawn in the order of memory
        elif node.op == "call_module" and getattr(owner.get_submodule(str(node.target)), "reads_strides", False):
            node.args = (_restored(graph, node.args[0], node, value(node.args[0])), *node.args[1:])
    (output,) = (node for node in graph.nodes if node.op == "output")
    results = iter(output.meta["results"])
    output.args = fx.map_arg(output.args, lambda node: _restored(graph, node, output, next(results)))


def _restore_inputs(graph: fx.Graph, of: Node) -> None:
    of.args = fx.map_arg(of.args, lambda node: _restored(graph, node, of, value(node)))


def _restored(graph: fx.Graph, node: Node, before: Node, fake: Any) -> Node:
    """fake: with the strides that the node is to have."""
    if not isinstance(fake, Tensor) or fake.layout is not torch.strided:
        return node
    if node.op in ("placeholder", "get_attr") and value(node) is fake and CROSSING not in node.meta:
        return node
    found = _wanted(graph, fake)
    if found is None:
        return node
    strides, sizes = found
    owner = graph.owning_module
    assert owner is not None  # passes work on graphs of modules
    name = f"strided_{sum(1 for _ in owner.children())}"
    owner.add_submodule(name, Strided(strides))
    with graph.inserting_before(before):
        new = graph.call_module(name, (node, *sizes))
    new.meta = {**node.meta, "example_value": fake}
    return new


def _wanted(graph: fx.Graph, fake: Tensor) -> tuple[Any, tuple[Node, ...]] | None:
    """The strides, or how to compute them from the values of some nodes; None where elements share memory, which no
    copy can have, or where a size comes from the data."""
    strides = fake.stride()
    hints = _hints(strides)
    sizes = _hints(fake.shape)
    if hints is None or sizes is None or _overlap(sizes, hints):
        return None
    if all(isinstance(stride, int) for stride in strides):
        return tuple(strides), ()
    import sympy  # takes a while, and is there where sizes are symbols

    expressions = [sympy.sympify(s if isinstance(s, int) else s.node.expr) for s in strides]
    symbols = sorted(set().union(*(e.free_symbols for e in expressions)), key=str)
    nodes = {value(n).node.expr: n for n in reversed(graph.nodes) if isinstance(value(n), torch.SymInt)}
    if any(symbol not in nodes for symbol in symbols):
        return _in_order(sizes, hints)
    places = tuple(nodes[symbol] for symbol in symbols)
    rule = sympy.lambdify(symbols, tuple(expressions), modules=[_FUNCTIONS, "math"])
    try:
        same = rule(*(value(place).node.hint for place in places)) == hints
    except (NameError, TypeError):  # a function of sizes that is not among the known ones
        same = False
    return (rule, places) if same else _in_order(sizes, hints)


def _in_order(sizes: tuple[int, ...], strides: tuple[int, ...]) -> tuple[None, tuple[Node, ...]] | None:
    """Where strides cannot be computed from the inputs' sizes: those of contiguous results need no computing."""
    contiguous = torch.empty(sizes, dtype=torch.float32, device="meta").stride()
    same = all(a == b for a, b, size in zip(strides, contiguous, sizes) if size > 1)
    return (None, ()) if same else None


def _hints(sizes: Any) -> tuple[int, ...] | None:
    """Sizes as they were at the capture."""
    found = tuple(size if isinstance(size, int) else size.node.hint for size in sizes)
    return None if any(size is None for size in found) else found


def _overlap(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    last = 0  # the place of the last element so far
    for stride, size in sorted((stride, size) for size, stride in zip(sizes, strides) if size > 1):
        if stride <= last:
            return True
        last += stride * (size - 1)
    return False


def _whole(fake: Any) -> bool:
    """Whether a tensor is all of its memory."""
    sizes, strides = _hints(fake.shape), _hints(fake.stride())
    if sizes is None or strides is None or _overlap(sizes, strides) or fake.storage_offset() != 0:
        return False
    return 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides)) == math.prod(sizes)
