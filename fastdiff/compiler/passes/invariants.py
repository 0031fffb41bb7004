"""What does not change between the steps of a sampling loop: keys and values of the text, a label's embedding. They are
moved to a graph of their own, whose results are kept as long as its inputs have the same values.

Which inputs could stay the same is guessed from their shapes, and found out by comparing values: tensors of two or
three dimensions, such as (B, S, C) of a text encoder. Images have four, times none or one. On a GPU, where comparing
waits for the device, the same tensor that nobody wrote to is taken to have the same values.
"""

from __future__ import annotations

import math
import weakref
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastdiff.compiler import effects, functions
from fastdiff.compiler.convolution import Conv2d
from fastdiff.compiler.fused import linear
from fastdiff.compiler.joined import JOINED
from fastdiff.compiler.nodes import CROSSING, Node, calls, is_weight, value
from fastdiff.compiler.precision import LowLinear
from fastdiff.compiler.report import Notes
from fastdiff.runtime import contents, graphs
from fastdiff.runtime.cuda_graph import Made

NAME = "invariants"
KEPT = "kept"  # the module's name in the graph

_LARGEST = 8 << 20  # bytes of an input that is worth comparing
_MISSES = 3  # calls in a row whose inputs differ, after which nobody compares any more


def apply(graph: fx.Graph, notes: Notes) -> None:
    """Move what depends on such inputs alone, if a layer is among it."""
    owner = graph.owning_module
    assert owner is not None
    slow: set[Node] = set()
    weights: set[Node] = set()
    inputs: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            fake = value(node)
            if not isinstance(fake, Tensor) or CROSSING in node.meta:
                continue  # a size, or features
            if is_weight(node):
                weights.add(node)
            elif fake.ndim in (2, 3) and fake.is_floating_point() and _small(fake):
                inputs.add(node)
        elif node.op == "get_attr":
            weights.add(node)
        elif node.op != "output":
            sources = set(node.all_input_nodes)
            if sources and sources <= slow | inputs | weights and sources & (slow | inputs) and _is_pure(node):
                slow.add(node)
    if not any(_is_layer(owner, node) for node in slow):
        return
    order = [node for node in graph.nodes if node in slow]
    outputs = [node for node in order if any(user not in slow for user in node.users)]
    used = [node for node in graph.nodes if node in inputs and any(user in slow for user in node.users)]
    given = [node for node in graph.nodes if node in weights and any(user in slow for user in node.users)]

    inner = fx.Graph()
    places: dict[Node, Node] = {}
    for node in (*used, *given):
        if node.op == "get_attr":
            places[node] = inner.get_attr(node.target)
        else:
            places[node] = inner.placeholder(node.name)
        places[node].meta = dict(node.meta)
    for node in order:
        places[node] = inner.node_copy(node, lambda each: places[each])
    inner.output(tuple(places[node] for node in outputs))
    given = [node for node in given if node.op == "placeholder"]
    module = Kept(fx.GraphModule(owner, inner), len(used))
    owner.add_submodule(KEPT, module)
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        kept = graph.call_module(KEPT, (*used, *given))
    kept.meta["pass"] = NAME
    anchor = kept
    for number, node in enumerate(outputs):
        with graph.inserting_after(anchor):
            anchor = graph.call_function(_item, (kept, number))
        anchor.meta = dict(node.meta)
        node.replace_all_uses_with(anchor)
    notes.matches = sum(_is_layer(owner, node) for node in slow)


class _Memory(NamedTuple):
    """What Kept knows of one set of inputs. weights: the numbers of their contents; results: None before they are
    kept. given: which tensors the caller gave on a GPU, where comparing values waits for the device. made: on which
    stream."""

    inputs: tuple[Tensor, ...]
    weights: tuple[int, ...] = ()
    results: tuple[Tensor, ...] | None = None
    given: tuple[_Given | None, ...] = ()
    made: Made | None = None


class _Given:
    """A tensor of the caller's as it was: the object, its version, and where it lies."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._state = weakref.ref(tensor), _state(tensor)

    @classmethod
    def of(cls, tensor: Tensor) -> _Given | None:
        """None for one that is compared by its values: it is on the CPU, or nobody counts its changes."""
        on_gpu = tensor.device.type == graphs.graph_type.device_type
        return cls(tensor) if on_gpu and not tensor.is_inference() else None

    def is_still(self, tensor: Tensor) -> bool:
        """Whether it is this tensor, unchanged as far as PyTorch knows."""
        return self._tensor() is tensor and self._state == _state(tensor)


def _state(tensor: Tensor) -> tuple[int, int, int]:
    return tensor._version, tensor.data_ptr(), tensor.untyped_storage()._cdata


class Kept(nn.Module):
    """Results of a graph, kept while its first `count` inputs have the same values and the others are unchanged.

    Threads may call it at the same time: what it knows is replaced as a whole.
    """

    def __init__(self, module: fx.GraphModule, count: int) -> None:
        super().__init__()
        self.module, self.count = module, count
        self._memory: _Memory | None = None
        self._misses = 0
        self.hits = 0

    def forward(self, *inputs: Tensor) -> Any:
        given, weights = inputs[: self.count], inputs[self.count :]
        if self.given_up or not all(map(contents.watchable, weights)):
            return self.module(*inputs)
        if graphs.capturing():  # where nothing can be compared, and a replay has other values
            return self.module(*inputs)
        known = self._memory
        if known is not None and known.made is not None:
            known.made.hand_over((*known.inputs, *(known.results or ())))
        if known is None or not all(map(_same, given, known.inputs, known.given)):
            self._misses = 0 if known is None else self._misses + 1
            # Kept from the second call with the same values on: a single call keeps nothing.
            clones = tuple(tensor.clone() for tensor in given)
            made = Made.on(given[0].device)
            self._memory = _Memory(clones, given=tuple(map(_Given.of, given)), made=made)
            return self.module(*inputs)
        self._misses = 0
        if any(each is not None and not each.is_still(tensor) for each, tensor in zip(known.given, given)):
            # The same values in another tensor, or written to it again: from here on this one is known.
            known = self._memory = known._replace(given=tuple(map(_Given.of, given)))
        numbers = tuple(contents.of(weight).number for weight in weights)
        if known.results is not None and numbers == known.weights:
            self.hits += 1
            return known.results
        results = tuple(_apart(result, given) for result in self.module(*inputs))
        self._memory = _Memory(known.inputs, numbers, results, known.given, Made.on(given[0].device))
        return results

    @property
    def given_up(self) -> bool:
        """Whether the inputs differ too often to keep anything."""
        return self._misses >= _MISSES

    def forget(self) -> None:
        """Keep nothing of the calls until now."""
        self._memory, self._misses = None, 0


def _apart(result: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
    """The result in memory of its own: what the caller writes to an input must not change it."""
    storages = {each.untyped_storage()._cdata for each in inputs}
    return result.clone() if result.untyped_storage()._cdata in storages else result


def _same(a: Tensor, b: Tensor, given: _Given | None) -> bool:
    if given is not None and given.is_still(a):
        return True
    return a.dtype is b.dtype and a.device == b.device and a.shape == b.shape and torch.equal(a, b)


def _item(results: tuple[Tensor, ...], number: int) -> Tensor:
    return results[number]


def _small(fake: Tensor) -> bool:
    size = math.prod(fake.shape) * fake.element_size()  # a symbol where a dimension is one
    return not isinstance(size, int) or size <= _LARGEST


def _is_layer(owner: nn.Module, node: Node) -> bool:
    if node.op == "call_module":
        return isinstance(owner.get_submodule(str(node.target)), (Conv2d, LowLinear, *JOINED))
    return calls(node, linear, F.linear, torch.conv2d, functions.product)


def _is_pure(node: Node) -> bool:
    """Whether the node may be kept: it is a tensor, and the same inputs give the same."""
    return isinstance(value(node), Tensor) and not effects.must_run(node)
