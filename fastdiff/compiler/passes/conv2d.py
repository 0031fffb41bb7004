"""Convolutions with their neighbours: nearest upsampling before; the embedding of the time, the residual and SiLU
after."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fastdiff.compiler import functions
from fastdiff.compiler.convolution import Conv2d
from fastdiff.compiler.nodes import Node, calls, find, follow, operands, rank, same, same_dtype, shape, state, value
from fastdiff.compiler.report import Notes

NAME = "conv2d"


def apply(graph: fx.Graph, notes: Notes) -> None:
    """Replace what is found."""
    for node in find(graph, torch.conv2d):
        x, weight, bias, stride, padding, dilation, groups = node.args
        if dilation != (1, 1) or groups != 1 or stride[0] != stride[1] or padding[0] != padding[1]:
            notes.missed(node, f"stride {stride}, padding {padding}, dilation {dilation}, {groups} groups")
            continue
        if not same_dtype(x, weight, bias):
            notes.missed(node, "weights of another dtype")
            continue
        upsample = 1
        if calls(x, functions.upsample_nearest) and len(x.users) == 1 and stride == (1, 1):
            x, upsample = x.args[0], 2
        epilogue = _Epilogue(node)
        end = follow(node, epilogue.takes)
        layer = Conv2d(stride[0], padding[0], upsample, epilogue.activation)
        notes.matched(state(end, layer, x, weight, bias, epilogue.channel_bias, epilogue.residual))


class _Epilogue:
    """What follows a convolution: a bias for each channel, a residual, SiLU, in this order."""

    def __init__(self, conv: Node) -> None:
        self.conv = conv
        self.activation: str | None = None
        self.channel_bias: Any = None
        self.residual: Any = None

    def takes(self, after: Node, before: Node) -> bool:
        """Whether the next node is part of it."""
        if self.activation is not None:
            return False
        if calls(after, F.silu):
            self.activation = "silu"
            return True
        other = operands(after, before) if calls(after, operator.add) else None
        if not isinstance(value(other), Tensor) or not same_dtype(self.conv, other) or self.residual is not None:
            return False
        if same(shape(other), shape(self.conv)):
            self.residual = other
        elif self.channel_bias is None and _per_channel(other, self.conv):
            self.channel_bias = other
        else:
            return False
        return True


def _per_channel(node: Any, conv: Node) -> bool:
    """Whether this is (N, C, 1, 1), with C the convolution's channels."""
    sizes, wanted = shape(node), shape(conv)
    if rank(node) != 4 or sizes is None or wanted is None or not same(sizes[:2], wanted[:2]):
        return False
    return same(sizes[2], 1) and same(sizes[3], 1)
