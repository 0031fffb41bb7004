"""Where a captured graph can be cut, so that a later call takes what lies behind the cut from an earlier one.

U-Nets: where the way up joins a skip by concatenation, what comes from below is the deep part (Ma et al. 2024,
DeepCache, Section 3.2). Transformers: the blocks are a chain of sums of the same shape, h + f(h), of which the same
layers come again and again; what those after the first add to h is the deep part (the residuals of Chen et al. 2024,
Delta-DiT, Section 4.1). Both are read from the graph in the vocabulary of `functions`, before the passes.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fastdiff.compiler import functions
from fastdiff.compiler.nodes import Node, calls, find, is_weight, only_user, rank, same, shape, value
from fastdiff.runtime.reuse import Caching

_LEAST = 0.25  # of the multiplications, for a chain of blocks that is the model and not one of its parts
_PASSED = (functions.index, functions.cat, operator.getitem)
_LAYERS = ("conv", "linear", "matmul", "mm", "einsum", "attention")  # in names of functions, methods and operators
# As graphs have them, and as fastdiff's own models call the operators.
_ATTENTION = (functions.dot_product_attention, torch.ops.fastdiff.attention.default)
_RESIDUAL_NORM = torch.ops.fastdiff.residual_ada_layer_norm.default
_METHODS = ("to", "float", "half", "bfloat16", "double", "type", "type_as", "clamp", "clip", "contiguous")


class NoCut(Exception):
    """There is no place to cut; the message says why."""


@dataclass(frozen=True)
class Cut:
    """deep: what is taken from an earlier call. start: if that is what was added to these features, which are those
    after the first blocks. watched: of which a threshold compares the values. share: of the graph's multiplications
    that a call which reuses leaves out. what: of the model, for people."""

    deep: Node
    start: Node | None
    watched: Node
    share: float
    what: str


class Ways:
    """Of a graph's nodes, by bits: all that leads to each, and all that follows."""

    def __init__(self, graph: fx.Graph) -> None:
        self.nodes = list(graph.nodes)
        self.bit = {node: 1 << place for place, node in enumerate(self.nodes)}
        self.before: dict[Node, int] = {}  # with itself
        self.after: dict[Node, int] = {}
        for node in self.nodes:
            self.before[node] = self.bit[node]
            for each in node.all_input_nodes:
                self.before[node] |= self.before[each]
        for node in reversed(self.nodes):
            self.after[node] = self.bit[node]
            for each in node.users:
                self.after[node] |= self.after[each]
        self.layers = sum(self.bit[node] for node in self.nodes if is_layer(node))

    def of(self, bits: int) -> Iterator[Node]:
        """The nodes of these bits, in the graph's order."""
        while bits:
            last = bits & -bits
            yield self.nodes[last.bit_length() - 1]
            bits ^= last

    def layers_before(self, node: Node) -> int:
        """The layers that lead to a node."""
        return self.before[node] & self.layers

    def between(self, first: Node, last: Node) -> int:
        """The layers on the ways from one node, or from what was made along with it, to another."""
        if first.target is operator.getitem and not isinstance(value(first.args[0]), Tensor):
            first = first.args[0]
        return self.after[first] & self.before[last] & self.layers

    def needed(self, node: Node, roots: list[Node]) -> int:
        """What must run to get these where the node's value is given."""
        found, waiting = 0, list(roots)
        while waiting:
            each = waiting.pop()
            if each is not node and not found & self.bit[each]:
                found |= self.bit[each]
                waiting += each.all_input_nodes
        return found


def is_layer(node: Node) -> bool:
    """Whether it multiplies matrices."""
    if node.op not in ("call_function", "call_method") or not isinstance(value(node), (Tensor, tuple)):
        return False
    name = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
    return calls(node, functions.product) or any(word in name for word in _LAYERS)


def work(node: Node) -> float:
    """The multiplications of a layer, about: at the sizes of the capture."""
    if calls(node, *_ATTENTION):
        return 2.0 * _numel(node.args[0]) * _size(node.args[1], -2)
    if calls(node, functions.product):
        return float(_numel(node)) * _size(node.args[1], -1)
    weights = [each for each in node.all_input_nodes if is_weight(each) and rank(each) > 1]
    if not weights:
        return 0.0
    each = max(weights, key=_numel)
    return float(_numel(node)) * _numel(each) / max(_size(each, 0), 1)


def find_cut(graph: fx.Graph, rule: Caching) -> Cut:
    """The place that the rule names. Raises NoCut where there is none."""
    ways = Ways(graph)
    return _below_skip(graph, ways, rule.depth) if rule.kind == "deep" else _after_blocks(graph, ways, rule.depth)


def share(ways: Ways, deep: Node, roots: list[Node]) -> float:
    """Of the multiplications, those that need not be done where the deep value is given."""
    left = ways.layers_before(deep) & ~ways.needed(deep, roots)
    total = sum(map(work, ways.of(ways.layers)))
    return sum(map(work, ways.of(left))) / total if total else 0.0


def _results(ways: Ways) -> list[Node]:
    return list(ways.nodes[-1].all_input_nodes)


# ---- U-Nets ----------------------------------------------------------------------------------------------------------


def _below_skip(graph: fx.Graph, ways: Ways, depth: int) -> Cut:
    joins = list(_joins(graph, ways))[::-1]  # the outermost first
    if not joins:
        raise NoCut("the graph joins no skip by concatenation, as a U-Net does on the way up")
    if not 1 <= depth < len(joins):
        raise NoCut(f"depth must be at least 1 and less than the {len(joins)} skips of the graph, got {depth}")
    deep, skip = joins[depth]
    saved = share(ways, deep, [*_results(ways), skip])
    if not saved:
        raise NoCut(f"nothing is below skip {depth} that the way around it does not need")
    return Cut(deep, None, skip, saved, f"below skip {depth} of {len(joins)}, from the outside")


def _joins(graph: fx.Graph, ways: Ways) -> Iterator[tuple[Node, Node]]:
    """Where features from below meet a skip, which all their layers come after: (features, skip)."""
    for node in find(graph, functions.cat):
        tensors = node.args[0]
        if len(tensors) != 2 or rank(node) < 3 or not all(isinstance(value(each), Tensor) for each in tensors):
            continue
        for deep, skip in (tensors, tensors[::-1]):
            below, outer = ways.layers_before(deep), ways.layers_before(skip)
            if outer and below != outer and below & outer == outer:
                yield deep, skip


# ---- transformers ----------------------------------------------------------------------------------------------------


def _after_blocks(graph: fx.Graph, ways: Ways, depth: int) -> Cut:
    chain = max(_chains(graph, ways), key=len, default=[])
    period = _period([_layers(ways, before, node) for before, node in chain])
    if period is None:
        raise NoCut("the graph has no chain of blocks alike, each of which adds to what it is given")
    count = len(chain) // period
    first = len(chain) - (count - depth) * period  # of the sums after the blocks that always run
    if not 0 <= depth < count:
        raise NoCut(f"depth must be at least 0 and less than the {count} blocks of the graph, got {depth}")
    start, deep = chain[first][0], chain[-1][1]
    while (after := only_user(deep)) is not None and _passes(after) and not calls(after, functions.cat):
        deep = after
    if not same(shape(start), shape(deep)):
        raise NoCut(f"the features are {shape(start)} after the first blocks, and {shape(deep)} after the last")
    watched = start if depth else _modulated(ways, start, deep)
    saved = share(ways, deep, [*_results(ways), start, watched])
    if saved < _LEAST:
        raise NoCut(
            f"the longest chain of blocks alike holds {saved:.0%} of the multiplications: this is no transformer"
        )
    return Cut(deep, start, watched, saved, f"the blocks after the first {depth} of {count}")


def _chains(graph: fx.Graph, ways: Ways) -> Iterator[list[tuple[Node, Node]]]:
    """Chains of sums (features before, features after)."""
    before: dict[Node, Node] = {}
    for node in find(graph, operator.add, operator.getitem, torch.addcmul):
        for stream, branch in _terms(node) if rank(node) >= 3 else ():
            alike = same(shape(stream), shape(node)) and same(shape(branch), shape(node))
            if alike and ways.between(stream, branch):
                before[node] = stream
    for last in before:
        chain: list[tuple[Node, Node]] = []
        each: Any = last
        while each in before:
            chain.append((before[each], each))
            each = _source(before[each], shape(last), before)
        yield chain[::-1]


def _terms(node: Node) -> list[tuple[Node, Node]]:
    """Which two may have been added, whichever of them the features are: an addition, also with a gate or in one
    operator with the norm after it."""
    if calls(node, operator.add):
        a, b = node.args[:2]
        pairs = [(a, b), (b, a)]
    elif calls(node, torch.addcmul):
        x, a, b = node.args[:3]
        pairs = [(x, a), (x, b)]
    else:
        inner, place = node.args
        fused = calls(inner, _RESIDUAL_NORM) and place == 0
        pairs = [(inner.args[1], inner.args[0])] if fused else []
    return [
        pair for pair in pairs if all(isinstance(each, fx.Node) and isinstance(value(each), Tensor) for each in pair)
    ]


def _source(node: Node, like: Any, sums: dict[Node, Node]) -> Node:
    """The sum of which this is a part, in another type or beside other tokens. like: the shape to look for."""
    while node not in sums and _passes(node):
        given = node.args[0]
        if calls(node, functions.cat):
            given = next((each for each in given if same(shape(each), like)), given[0])
        if not isinstance(given, fx.Node):
            break
        node = given
    return node


def _passes(node: Node) -> bool:
    """Whether it gives the numbers that it is given: all or some of them, in another type, or beside others."""
    if not isinstance(value(node), Tensor):
        return False
    return calls(node, *_PASSED) or (node.op == "call_method" and node.target in _METHODS)


def _layers(ways: Ways, first: Node, last: Node) -> list[Any]:
    """What a block consists of: on the ways from its input to its result."""
    return [(str(node.target), str(shape(node))) for node in ways.of(ways.between(first, last))]


def _period(kinds: list[Any]) -> int | None:
    """After how many sums the same layers come again: from the first on, or, where the first blocks are others, up to
    the last."""
    for length in range(1, len(kinds) // 2 + 1):
        if kinds[:length] == kinds[length : 2 * length] and len(kinds) % length == 0:
            return length
    for length in range(1, len(kinds) // 2 + 1):
        if kinds[-length:] == kinds[-2 * length : -length]:
            return length
    return None


def _modulated(ways: Ways, start: Node, deep: Node) -> Node:
    """What the first layer after the start reads: the features as the time modulated them."""
    layer = next(ways.of(ways.between(start, deep)))
    return next(each for each in layer.all_input_nodes if ways.before[each] & ways.bit[start])


# ---- sizes at the capture --------------------------------------------------------------------------------------------


def _numel(node: Any) -> int:
    found = 1
    for size in shape(node) or ():
        found *= _hint(size)
    return found


def _size(node: Any, dim: int) -> int:
    return _hint((shape(node) or (1,))[dim])


def _hint(size: Any) -> int:
    return size if isinstance(size, int) else int(size.node.hint or 1)
