"""A graph in three parts around a cut: the outer part, which always runs, the deep part, whose result may be taken from
an earlier call, and the rest, which starts from that result."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from fastdiff.compiler import effects, mutations
from fastdiff.compiler.cuts import Cut, NoCut, Ways
from fastdiff.compiler.nodes import CROSSING, Node, is_weight, value


@dataclass(frozen=True)
class Stage:
    """One part. inputs: where they are among the whole graph's inputs, followed by the outer part's results and then
    the deep part's first one."""

    module: fx.GraphModule
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Stages:
    """The parts. start, watched: where the nodes of the cut are among all these values. weights: which of the graph's
    inputs are weights that the deep result is made of."""

    outer: Stage
    deep: Stage
    rest: Stage
    start: int | None
    watched: int
    weights: tuple[int, ...]


def split(module: fx.GraphModule, cut: Cut) -> Stages:
    """Every node of the graph in one of the parts. Raises NoCut where they cannot run apart: in another order, or not
    in each call."""
    graph = module.graph
    effects.note(graph)
    if mutations.written_inputs(graph):
        raise NoCut("the model writes into what it is given")
    for node in graph.nodes:
        if node.op not in ("placeholder", "output") and effects.must_run(node):
            raise NoCut(f"{node.name} draws random numbers, or does what is not known")
    ways = Ways(graph)
    outer, deep, rest = _parts(graph, ways, cut)
    crossing = [node for node in outer if any(user not in outer for user in node.users)]
    crossing += [x for x in (cut.start, cut.watched) if x is not None and x in outer and x not in crossing]
    if any(not isinstance(value(node), Tensor) and isinstance(value(node), (tuple, list)) for node in crossing):
        raise NoCut("several tensors at once cross the cut")
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    places = {node: place for place, node in enumerate([*inputs, *crossing, cut.deep])}
    (output,) = (node for node in graph.nodes if node.op == "output")
    made = (
        _stage(module, places, outer, tuple(crossing)),
        _stage(module, places, deep, (cut.deep,)),
        _stage(module, places, rest, output.args[0], output.meta.get("results")),
    )
    known = ways.before[cut.deep]
    weights = tuple(place for place, node in enumerate(inputs) if is_weight(node) and known & ways.bit[node])
    start = None if cut.start is None else places[cut.start]
    return Stages(*made, start, places[cut.watched], weights)


def _parts(graph: fx.Graph, ways: Ways, cut: Cut) -> tuple[dict[Node, None], dict[Node, None], dict[Node, None]]:
    """The nodes of the outer part, of the deep one and of the rest, each in the graph's order."""
    roots = [x for x in (*ways.nodes[-1].all_input_nodes, cut.start, cut.watched) if x is not None]
    needed = ways.needed(cut.deep, roots)
    parts: tuple[dict[Node, None], dict[Node, None], dict[Node, None]] = ({}, {}, {})
    home: dict[Node, int] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        if node.target is operator.getitem and node.args[0] in home:
            part = home[node.args[0]]  # one of several results: they cross as single tensors
        elif needed & ways.bit[node]:
            part = 2 if ways.after[cut.deep] & ways.bit[node] else 0
        elif ways.before[cut.deep] & ways.bit[node]:
            part = 1
        else:
            continue  # nobody needs it
        home[node] = part
        parts[part][node] = None
    return parts


def _stage(
    module: fx.GraphModule,
    places: dict[Node, int],
    nodes: dict[Node, None],
    results: Any,
    wanted: Sequence[Any] | None = None,
) -> Stage:
    """wanted: the results' tensors with the strides that they must have; None: others read them, whatever these are."""
    inner = fx.Graph()
    own: dict[Node, Node] = {}
    read = {each for node in nodes for each in node.all_input_nodes} | {*_nodes(results)}
    inputs = []
    for node, place in places.items():
        is_size = node.op == "placeholder" and not isinstance(value(node), Tensor)  # strides are computed from all
        if node in nodes or not (node in read or is_size):
            continue
        own[node] = inner.placeholder(str(node.target) if node.op == "placeholder" else node.name)
        own[node].meta = {k: v for k, v in node.meta.items() if k not in ("origin", "effects", "memory")}
        if node.op != "placeholder":
            own[node].meta[CROSSING] = True
        inputs.append(place)
    for node in module.graph.nodes:
        if node.op == "get_attr" and node in read:
            own[node] = inner.get_attr(str(node.target))
            own[node].meta = dict(node.meta)
    for node in nodes:
        own[node] = inner.node_copy(node, lambda each: own[each])
    output = inner.output(fx.map_arg(results, lambda each: own[each]))
    output.meta["results"] = [None] * len(_nodes(results)) if wanted is None else wanted
    for node in inner.nodes:
        if node.op not in ("placeholder", "output"):
            node.meta["origin"] = node.name
    inner.lint()
    return Stage(fx.GraphModule(module, inner), tuple(inputs))


def _nodes(results: Any) -> list[Node]:
    found: list[Node] = []
    fx.map_arg(results, found.append)
    return found
