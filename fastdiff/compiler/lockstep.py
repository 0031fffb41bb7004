"""A captured graph and its fast version side by side, node by node, with values dropped as soon as nobody needs
them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fastdiff.compiler.nodes import Node
from fastdiff.ops import OPS


class Walk:
    """Runs a graph up to a node. keep: names of nodes whose values stay until they are taken."""

    def __init__(self, module: fx.GraphModule, inputs: tuple[Any, ...], keep: set[str]) -> None:
        self.module, self._inputs = module, iter(inputs)
        self._nodes = iter(module.graph.nodes)
        self._left: Counter[Node] = Counter({node: len(node.users) for node in module.graph.nodes})
        self._values: dict[Node, Any] = {}
        self._keep = keep
        self._kept: dict[str, Any] = {}
        self._done: set[str] = set()
        self.result: Any = None

    def take(self, name: str) -> Any:
        """The value of the node of this name, which must be in `keep`."""
        while name not in self._done:
            self.step()
        return self._kept.pop(name)

    def step(self) -> tuple[Node, Any]:
        """Run the next node. Raises StopIteration after the last."""
        node = next(self._nodes)
        value = self._run(node)
        for used in node.all_input_nodes:
            self._left[used] -= 1
            if not self._left[used]:
                self._values.pop(used, None)
        if self._left[node]:
            self._values[node] = value
        if node.name in self._keep:
            self._kept[node.name] = value
        self._done.add(node.name)
        return node, value

    def _run(self, node: Node) -> Any:
        if node.op == "placeholder":
            return next(self._inputs)
        if node.op == "get_attr":
            return getattr(self.module, node.target)
        arguments = fx.map_arg(node.args, lambda each: self._values[each])
        options = fx.map_arg(node.kwargs, lambda each: self._values[each])
        if node.op == "output":
            self.result = arguments[0]
            return self.result
        if node.op == "call_module":
            return self.module.get_submodule(node.target)(*arguments, **options)
        if node.op == "call_method":
            return getattr(arguments[0], node.target)(*arguments[1:], **options)
        return node.target(*arguments, **options)


def compare(
    original: fx.GraphModule,
    fast: fx.GraphModule,
    inputs: tuple[Any, ...],
    visit: Callable[[Node, Tensor, Tensor, Tensor | None], None],
    wide: torch.dtype | None = None,
) -> None:
    """Call visit(node of the fast graph, its value, the original's, the original's in the type `wide`, if there is one)
    for each floating-point tensor that both have."""
    last: dict[str, Node] = {}  # of several nodes with one origin, the last has its value
    names = {node.name for node in original.graph.nodes if node.op not in ("placeholder", "output", "get_attr")}
    for node in fast.graph.nodes:
        if node.meta.get("origin") in names and node.op not in ("placeholder", "output", "get_attr"):
            last[node.meta["origin"]] = node
    pairs = {node: origin for origin, node in last.items()}
    ours, theirs = Walk(fast, inputs, set()), Walk(original, inputs, set(last))
    exact = None if wide is None else _wider(original, inputs, wide, set(last))
    for _ in fast.graph.nodes:
        node, value = ours.step()
        if node in pairs:
            expected = theirs.take(pairs[node])
            target = exact.take(pairs[node]) if exact is not None else None
            if isinstance(value, Tensor) and isinstance(expected, Tensor) and value.is_floating_point():
                visit(node, value, expected, target)


def in_wider(module: fx.GraphModule, inputs: tuple[Any, ...], dtype: torch.dtype) -> Any:
    """The graph's results in float64 or float32."""
    walk = _wider(module, inputs, dtype, set())
    for _ in module.graph.nodes:
        walk.step()
    return walk.result


def _wider(module: fx.GraphModule, inputs: tuple[Any, ...], dtype: torch.dtype, keep: set[str]) -> Walk:
    wide = [
        x.to(torch.promote_types(x.dtype, dtype)) if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in inputs
    ]
    return Walk(_widened(module, dtype), tuple(wide), keep)


def _widened(module: fx.GraphModule, dtype: torch.dtype) -> fx.GraphModule:
    """The graph with its casts and constants in the dtype, with references in place of operators."""
    narrow = {torch.float32, torch.bfloat16, torch.float16} - {dtype}

    def wide(x: Any) -> Any:
        return dtype if isinstance(x, torch.dtype) and x in narrow else x

    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        if node.op == "call_method" and node.target in ("float", "half", "bfloat16"):
            node.target = {torch.float64: "double", torch.float32: "float"}[dtype]
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "fastdiff":
            node.target = OPS[node.target._schema.name.partition("::")[2]].plain.positional
        node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), wide)
    return fx.GraphModule(module, graph)
