"""Channels-last feature maps: convolutions give and take them, so `.contiguous()` in between would only undo it."""

from __future__ import annotations

from torch import fx

from fastdiff.compiler.convolution import Conv2d
from fastdiff.compiler.functions import cat
from fastdiff.compiler.fused import cat_pooled
from fastdiff.compiler.nodes import find, forward, rank, replace
from fastdiff.compiler.report import Notes

NAME = "layout"


def apply(graph: fx.Graph, notes: Notes) -> None:
    """Let convolutions work on channels-last maps. Who reads strides gets the original's, see `strides`."""
    owner = graph.owning_module
    assert owner is not None
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(module := owner.get_submodule(str(node.target)), Conv2d):
            module.channels_last = True
            notes.matched(node)
        elif node.op == "call_method" and node.target == "contiguous" and not node.kwargs and len(node.args) == 1:
            forward(node, node.args[0])
    for node in find(graph, cat):
        if rank(node) == 4:
            replace(node, cat_pooled, *node.args)
