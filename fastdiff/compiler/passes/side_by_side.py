"""On a GPU: two maps that are concatenated, as a U-Net does with its skips, for group norms and 1x1 convolutions that
read them where they are. In half types, whose maps are channels-last there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fastdiff import ops
from fastdiff.compiler import functions
from fastdiff.compiler.convolution import Conv2d
from fastdiff.compiler.nodes import Node, calls, dtype, find, on_gpu, rank, same, same_dtype, shape, value
from fastdiff.compiler.report import Notes

NAME = "side_by_side"
_HALVES = (torch.float16, torch.bfloat16)


def apply(graph: fx.Graph, notes: Notes) -> None:
    """Replace what is found."""
    if not on_gpu(graph):
        return
    for node in find(graph, functions.cat):
        tensors, dim = node.args
        if len(tensors) != 2 or dim not in (1, -3) or not all(isinstance(value(t), Tensor) for t in tensors):
            continue
        first, second = tensors
        if rank(node) != 4 or dtype(node) not in _HALVES or not same_dtype(node, first, second):
            continue
        users = list(node.users)
        if not any(_is_norm(user, node) for user in users):
            continue
        if not all(_is_norm(user, node) or _is_pointwise(graph, user, node) for user in users):
            notes.missed(node, "what is no norm and no 1x1 convolution reads the concatenation as well")
            continue
        for user in users:
            user.args = (first, *user.args[1:], second)
        notes.matched(node)


def _is_norm(user: Node, node: Node) -> bool:
    """Whether a node is the group norm of this one, and else has nothing to do with it."""
    if not calls(user, ops.group_norm_silu.positional) or len(user.args) != 8:
        return False
    return user.args[0] is node and node not in user.args[1:]


def _is_pointwise(graph: fx.Graph, user: Node, node: Node) -> bool:
    """Whether a node is a 1x1 convolution of this one, and else has nothing to do with it."""
    if user.op != "call_module" or user.args[0] is not node or node in user.args[1:]:
        return False
    assert graph.owning_module is not None
    layer: Any = graph.owning_module.get_submodule(str(user.target))
    if not isinstance(layer, Conv2d) or len(user.args) != 5:
        return False
    ones = (layer.stride, layer.padding, layer.upsample) == (1, 0, 1)
    return ones and same((shape(user.args[1]) or ())[2:], (1, 1))
