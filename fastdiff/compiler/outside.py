"""What of a captured graph is done outside of its CUDA graph, at every call.

A replay has the numbers of the capture in it, and may not read values. So what is computed of numbers and of tensors on
the CPU, such as a time that a caller gives as a number of Python, is computed before the replay, and so are the results
that `invariants` keeps for a prompt. The first tensor of each on the GPU is copied to where the graph reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fastdiff.compiler import effects
from fastdiff.compiler.errors import Unsupported
from fastdiff.compiler.nodes import Node, value
from fastdiff.compiler.passes.invariants import Kept, is_weight

_READS = {"item", "tolist", "numpy", "nonzero", "_local_scalar_dense", "is_nonzero", "equal", "allclose", "unique"}
_FROM_NUMBERS = {torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor}


@dataclass
class Parts:
    """A graph in two. Both take the graph's inputs, the inside one also what the outside one gives, in this order.

    weights, tensors, numbers: places among the inputs of parameters and buffers, of other tensors, and of numbers that
    the inside one reads. kept: which results of the outside one stay the same objects while they are the same.
    """

    inside: fx.GraphModule
    outside: fx.GraphModule | None
    weights: list[int]
    tensors: list[int]
    numbers: list[int]
    kept: list[bool]


def split(module: fx.GraphModule, device: str, *, kept_inside: bool) -> Parts:
    """device: the type of the one with graphs. kept_inside: nothing is kept, as the inputs differ in every call.

    Raises Unsupported, with the reason, for a graph that no CUDA graph can stand for.
    """
    nodes = _Nodes(module, device, kept_inside)
    inside, outside = fx.Graph(), fx.Graph()
    inner: dict[Node, Node] = {}
    outer: dict[Node, Node] = {}
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node in placeholders:
        for graph, places in ((inside, inner), (outside, outer)):
            places[node] = graph.placeholder(node.name)
    crossing = [
        node
        for node in module.graph.nodes
        if node in nodes.outside and any(user not in nodes.outside and user not in nodes.sizes for user in node.users)
    ]
    for node in crossing:
        inner[node] = inside.placeholder(f"given_{node.name}")
    for node in module.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            inside.output(fx.map_arg(node.args[0], lambda each: inner[each]))
            continue
        if node in nodes.sizes or node in nodes.outside or (node.op == "get_attr" and nodes.is_outer(node)):
            outer[node] = outside.node_copy(node, lambda each: outer[each])
        if node not in nodes.outside:
            inner[node] = inside.node_copy(node, lambda each: inner[each])
    outside.output(tuple(outer[node] for node in crossing))
    read = [node for node in placeholders if any(user not in nodes.outside for user in node.users)]
    places = {node: place for place, node in enumerate(placeholders)}
    tensors = [node for node in read if isinstance(value(node), Tensor)]
    return Parts(
        fx.GraphModule(module, inside),
        fx.GraphModule(module, outside) if crossing else None,
        weights=[places[node] for node in tensors if is_weight(node)],
        tensors=[places[node] for node in tensors if not is_weight(node)],
        numbers=[places[node] for node in read if not isinstance(value(node), Tensor)],
        kept=[node in nodes.kept for node in crossing],
    )


class _Nodes:
    """Which nodes are sizes, which are in both parts; which are outside; which of those are kept.

    host: what is known on the host only, tensors on the CPU and numbers that were read from tensors.
    """

    def __init__(self, module: fx.GraphModule, device: str, kept_inside: bool) -> None:
        self.device = device
        self.sizes: set[Node] = set()
        self.outside: set[Node] = set()
        self.kept: set[Node] = set()
        host: set[Node] = set()
        for node in module.graph.nodes:
            inputs = node.all_input_nodes
            if node.op == "placeholder":
                if not isinstance(value(node), Tensor):
                    self.sizes.add(node)
                elif not self._on_device(node) or any(_reads(user) for user in node.users):
                    host.add(node)
            elif node.op in ("get_attr", "output"):
                fake = value(node)
                if node.op == "get_attr" and isinstance(fake, Tensor) and fake.ndim and not self._on_device(node):
                    host.add(node)
                    self.outside.add(node)
                for each in inputs:
                    self._check_read(node, each, host)
            elif node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), Kept):
                if not kept_inside:
                    self.outside.add(node)
                    self.kept.add(node)
            elif any(each in self.kept for each in inputs) and _is_item(node):
                self.outside.add(node)
                self.kept.add(node)
            elif inputs and all(each in self.sizes for each in inputs) and not isinstance(value(node), Tensor):
                self.sizes.add(node)
            elif self._is_made_on_the_host(node, host):
                self.outside.add(node)
                if not self._on_device(node):
                    host.add(node)
            else:
                self._check(node, host)

    def is_outer(self, node: Node) -> bool:
        """Whether something outside reads this constant."""
        return any(user in self.outside for user in node.users)

    def _on_device(self, node: Node) -> bool:
        fake = value(node)
        if isinstance(fake, (tuple, list)):
            return all(isinstance(each, Tensor) and each.device.type == self.device for each in fake)
        return isinstance(fake, Tensor) and fake.device.type == self.device

    def _is_made_on_the_host(self, node: Node, host: set[Node]) -> bool:
        inputs = node.all_input_nodes
        if not all(each in host or each in self.sizes for each in inputs):
            return False
        return any(each in host for each in inputs) or node.target in _FROM_NUMBERS

    def _check(self, node: Node, host: set[Node]) -> None:
        """Raise Unsupported for what a capture forbids, or a replay would do otherwise."""
        if _reads(node):
            raise Unsupported(f"{node.name} reads values on the host")
        if effects.of(node).must_run:
            raise Unsupported(f"{node.name} draws random numbers, or does what is not known")
        for each in node.all_input_nodes:
            self._check_read(node, each, host)
        found = value(node)
        tensors = [
            each for each in (found if isinstance(found, (tuple, list)) else [found]) if isinstance(each, Tensor)
        ]
        if any(each.device.type != self.device for each in tensors):
            raise Unsupported(f"{node.name} is on the CPU, in the middle of the model")

    def _check_read(self, node: Node, each: Node, host: set[Node]) -> None:
        if each in host and isinstance(value(each), Tensor) and each.op != "placeholder":
            raise Unsupported(f"{node.name} reads {each.name}, which is on the CPU")
        if each in host and each.op == "placeholder" and not self._on_device(each):
            raise Unsupported(f"{node.name} reads {each.name}, which is given on the CPU")


def _reads(node: Node) -> bool:
    return (
        node.op in ("call_function", "call_method")
        and str(getattr(node.target, "__name__", node.target)).partition(".")[0] in _READS
    )


def _is_item(node: Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") in ("_item", "getitem")
