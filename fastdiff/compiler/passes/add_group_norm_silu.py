"""On a GPU: what is added after a convolution with the group norm of the sum, in half types, whose maps are
channels-last there. On the CPU the kernel of the convolution adds."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from fastdiff import ops
from fastdiff.compiler.convolution import Conv2d
from fastdiff.compiler.nodes import Node, dtype, find, insert, insert_module, on_gpu, rank, same_dtype, value
from fastdiff.compiler.report import Notes

NAME = "add_group_norm_silu"
_HALVES = (torch.float16, torch.bfloat16)
# As the pass before made it, and as fastdiff's own models call it.
_NORMS = (ops.group_norm_silu.positional, torch.ops.fastdiff.group_norm_silu.default)


def apply(graph: fx.Graph, notes: Notes) -> None:
    """Replace what is found."""
    if not on_gpu(graph):
        return
    for norm in find(graph, *_NORMS):
        if len(norm.args) < 8 or norm.args[8:] not in ((), (None,)):
            continue
        conv, groups, weight, bias, eps, scale, shift, activation = norm.args[:8]
        layer = _convolution(graph, conv)
        if layer is None or layer.activation is not None or len(conv.args) != 5:
            continue
        x, kernel, conv_bias, channel_bias, residual = conv.args
        added = conv_bias, channel_bias, residual
        if added == (None,) * 3 or not same_dtype(conv, *added, weight, bias, scale, shift):
            continue
        if dtype(conv) not in _HALVES:
            notes.missed(norm, f"maps of {dtype(conv)} need not be channels-last")
            continue
        if layer.upsample != 1:
            notes.missed(norm, "the map is upsampled: four 2x2 convolutions of the small one add the bias themselves")
            continue
        place = _place(graph, conv, norm)
        if place is None:
            notes.missed(norm, "the sum is used before its norm is computed")
            continue
        bare = insert_module(conv, Conv2d(layer.stride, layer.padding, 1, None), x, kernel, None, None, None,
                             example=value(conv))  # fmt: skip
        arguments = (bare, groups, *added, weight, bias, eps, scale, shift, activation)
        both = insert(norm, ops.add_group_norm_silu.positional, *arguments, example=(value(conv), value(norm)))
        place.prepend(both)
        for index, old in enumerate((conv, norm)):
            new = insert(norm, operator.getitem, both, index)
            place.prepend(new)
            new.meta = dict(old.meta)
            old.replace_all_uses_with(new)
        notes.matched(both)


def _convolution(graph: fx.Graph, node: Any) -> Conv2d | None:
    """The module that a node calls, if it is a convolution."""
    if not isinstance(node, fx.Node) or node.op != "call_module" or rank(node) != 4:
        return None
    assert graph.owning_module is not None
    module = graph.owning_module.get_submodule(str(node.target))
    return module if isinstance(module, Conv2d) else None


def _place(graph: fx.Graph, conv: Node, norm: Node) -> Any:
    """The node before which the sum and its norm can be computed: after all that they need, before all who use the
    sum. None if there is none."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    place = max(norm.all_input_nodes, key=order.__getitem__).next  # the sum is among them
    return place if order[place] <= min(order[user] for user in conv.users) else None
