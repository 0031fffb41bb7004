"""A convolution of a graph, with its epilogue."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.ops.conv2d import Arguments
from fastdiff.runtime.native import core


class Conv2d(nn.Module):
    """activation(conv2d(x, weight, bias) + channel_bias + residual).

    upsample: x is first made that many times as large, nearest neighbour. skip: is concatenated to x.
    """

    def __init__(self, stride: int, padding: int, upsample: int, activation: str | None) -> None:
        super().__init__()
        self.stride, self.padding, self.upsample, self.activation = stride, padding, upsample, activation
        self.channels_last = False  # the layout of feature maps, set by the pass "layout"
        self.algorithm: tuple[str, str] | None = None  # with this instruction set, set by the pass "weight_budget"

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        channel_bias: Tensor | None,
        residual: Tensor | None,
        skip: Tensor | None = None,
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last) if self.channels_last else x
        if skip is not None and self.channels_last:
            skip = skip.contiguous(memory_format=torch.channels_last)
        channel_bias = None if channel_bias is None else channel_bias.flatten(1)
        algorithm = self.algorithm[1] if self.algorithm is not None and self.algorithm[0] == core.isa() else None
        return ops.conv2d.run(
            Arguments(
                x, skip, weight, bias, self.stride, self.padding, residual, channel_bias, self.activation,
                self.upsample, algorithm=algorithm,
            ),
            inplace=True,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"stride={self.stride}, padding={self.padding}, upsample={self.upsample}, activation={self.activation}"
