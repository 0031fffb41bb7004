"""Memory of their own for results: the caller may write to what a model gives."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fastdiff.compiler import fused
from fastdiff.compiler.nodes import Node, calls, value
from fastdiff.compiler.passes import constant_folding, invariants, normalize


def own_results(graph: fx.Graph) -> None:
    """Copy each result that may be in the memory of what is kept between calls. Strides are for `strides.restore`."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    kept = _may_share_what_is_kept(graph)

    def owned(node: Node) -> Node:
        if node not in kept or not isinstance(value(node), Tensor):
            return node
        with graph.inserting_before(output):
            new = graph.call_function(torch.clone, (node,))
        new.meta = dict(node.meta)
        return new

    output.args = fx.map_arg(output.args, owned)


def _may_share_what_is_kept(graph: fx.Graph) -> set[Node]:
    """The nodes whose memory may be that of a folded constant or of a result that is kept between calls."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            shares = constant_folding.is_constant(node) or node.target == invariants.KEPT
        elif calls(node, *fused.FRESH, *normalize.FRESH):
            shares = False
        else:
            shares = any(each in found for each in node.all_input_nodes)
        if shares:
            found.add(node)
    return found
