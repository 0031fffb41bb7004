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
from fastdiff.compiler.nodes import Node, calls, find, only_user, operands, rank, same, same_dtype, shape, state, value
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
        end, channel_bias, residual, activation = node, None, None, None
        while (after := only_user(end)) is not None:
            if calls(after, operator.add) and isinstance(value(operands(after, end)), Tensor):
                other = operands(after, end)
                if not same_dtype(node, other) or activation is not None or residual is not None:
                    break
                if same(shape(other), shape(node)):
                    residual = other
                elif channel_bias is None and _per_channel(other, node):
                    channel_bias = other
                else:
                    break
            elif calls(after, F.silu) and activation is None:
                activation = "silu"
            else:
                break
            end = after
        new = state(end, Conv2d(stride[0], padding[0], upsample, activation), x, weight, bias, channel_bias, residual)
        notes.matched(new)


def _per_channel(node: Any, conv: Node) -> bool:
    """Whether this is (N, C, 1, 1), with C the convolution's channels."""
    sizes, wanted = shape(node), shape(conv)
    if rank(node) != 4 or sizes is None or wanted is None or not same(sizes[:2], wanted[:2]):
        return False
    return same(sizes[2], 1) and same(sizes[3], 1)
