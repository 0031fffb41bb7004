"""Channels-last feature maps: convolutions give and take them, so `.contiguous()` in between would only undo it."""

from __future__ import annotations

import torch
from torch import fx

from fastdiff.compiler.convolution import Conv2d
from fastdiff.compiler.functions import cat
from fastdiff.compiler.fused import cat_pooled
from fastdiff.compiler.nodes import dtype, find, forward, on_gpu, rank, replace, value
from fastdiff.compiler.report import Notes
from fastdiff.ops.tensors import is_channels_last

NAME = "layout"
_HALVES = (torch.float16, torch.bfloat16)
_TRANSPOSED = (
    "maps are channels-last, weights are not, and cuDNN transposes them in every call; "
    "model.to(memory_format=torch.channels_last) spares that"
)


def apply(graph: fx.Graph, notes: Notes) -> None:
    """Let convolutions work on channels-last maps, on a GPU those in halves. Who reads strides gets the original's, see
    `strides`."""
    owner = graph.owning_module
    assert owner is not None
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(module := owner.get_submodule(str(node.target)), Conv2d):
            if not on_gpu(graph):
                module.channels_last = True
            elif dtype(node) in _HALVES:
                module.channels_last = True
                if not is_channels_last(value(node.args[1])):
                    notes.missed(node, _TRANSPOSED)
            else:
                notes.missed(node, f"cuDNN's convolutions of {dtype(node)} take maps as they are")
                continue
            notes.matched(node)
        elif node.op == "call_method" and node.target == "contiguous" and not node.kwargs and len(node.args) == 1:
            forward(node, node.args[0])
    for node in find(graph, cat):
        if rank(node) == 4:
            replace(node, cat_pooled, *node.args)
