"""A convolution of a graph, with its epilogue."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.compiler.fused import channels_last
from fastdiff.compiler.packing import Watch
from fastdiff.ops.conv2d_pointwise import pointwise
from fastdiff.runtime import choice
from fastdiff.runtime.native import core

conv2d: Any = importlib.import_module("fastdiff.ops.conv2d")  # the package has the function by this name


def _kernel_takes(*arguments: Any) -> bool:
    """Whether ops.conv2d would run its kernel; elsewhere the epilogue is better done in place here."""
    if choice.current() == "reference":
        return False
    return conv2d.supports(*arguments) is None and conv2d.faster_in_torch(*arguments) is None


class Conv2d(nn.Module):
    """activation(conv2d(x, weight, bias) + channel_bias + residual).

    upsample: x is first made that many times as large, nearest neighbour.
    """

    def __init__(self, stride: int, padding: int, upsample: int, activation: str | None) -> None:
        super().__init__()
        self.stride, self.padding, self.upsample, self.activation = stride, padding, upsample, activation
        self.channels_last = False  # the layout of feature maps, set by the pass "layout"
        self.algorithm: tuple[str, str] | None = None  # with this instruction set, set by the pass "weight_budget"
        self._watch = Watch()

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, channel_bias: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        x = channels_last(x) if self.channels_last else x
        if _kernel_takes(
            x, None, weight, bias, self.stride, self.padding, residual, channel_bias, self.activation, self.upsample
        ):
            self._watch(weight)
            if self.algorithm is not None and self.algorithm[0] == core.isa():
                per_channel = channel_bias if channel_bias is None else channel_bias.flatten(1)
                return torch.ops.fastdiff.conv2d(
                    x, None, weight, bias, self.stride, self.padding, residual, per_channel, self.activation,
                    self.upsample, 1.0, self.algorithm[1],
                )  # fmt: skip
            return ops.conv2d(
                x,
                weight,
                bias,
                stride=self.stride,
                padding=self.padding,
                residual=residual,
                channel_bias=channel_bias,
                activation=self.activation,
                upsample=self.upsample,
            )
        options = (self.stride, self.padding, residual, channel_bias, self.activation, self.upsample, 1.0)
        if (y := pointwise(x, None, weight, bias, *options)) is not None:
            return y
        if self.upsample != 1:
            x = F.interpolate(x, scale_factor=float(self.upsample), mode="nearest")
        y = F.conv2d(x, weight, bias, self.stride, self.padding)
        if channel_bias is not None:
            y += channel_bias
        if residual is not None:
            y += residual
        return F.silu(y, inplace=True) if self.activation == "silu" else y

    def extra_repr(self) -> str:
        return f"stride={self.stride}, padding={self.padding}, upsample={self.upsample}, activation={self.activation}"
