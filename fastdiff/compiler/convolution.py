"""A convolution of a graph, with its epilogue."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.compiler.fused import add_bias, on_triton
from fastdiff.ops.conv2d import Arguments, is_channels_last
from fastdiff.runtime.native import core

_FEW_PIXELS = 2048  # of all samples: with fewer, summing up the weights is a sizeable part


class Conv2d(nn.Module):
    """activation(conv2d(x, weight, bias) + channel_bias + residual).

    upsample: x is first made that many times as large, nearest neighbour.
    """

    def __init__(self, stride: int, padding: int, upsample: int, activation: str | None) -> None:
        super().__init__()
        self.stride, self.padding, self.upsample, self.activation = stride, padding, upsample, activation
        self.channels_last = False  # the layout of feature maps, set by the pass "layout"
        self.on_gpu = False  # the convolution without its bias, then one kernel for all that follows
        self.algorithm: tuple[str, str] | None = None  # with this instruction set, set by the pass "weight_budget"

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, channel_bias: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last) if self.channels_last else x
        channel_bias = None if channel_bias is None else channel_bias.flatten(1)
        if self.on_gpu:
            return self._by_cudnn(x, weight, bias, channel_bias, residual)
        algorithm = self.algorithm[1] if self.algorithm is not None and self.algorithm[0] == core.isa() else None
        return ops.conv2d.run(
            Arguments(
                x, None, weight, bias, self.stride, self.padding, residual, channel_bias, self.activation,
                self.upsample, algorithm=algorithm,
            ),
            inplace=True,
        )  # fmt: skip

    def _by_cudnn(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, channel_bias: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        if bias is not None and self._has_phases(x, weight):
            from fastdiff.kernels.pointwise import interleave, phases

            x = x.contiguous(memory_format=torch.channels_last)
            y = F.conv2d(x, phases(weight), padding=1).contiguous(memory_format=torch.channels_last)
            y, bias = interleave(y, bias), None
        else:
            x = F.interpolate(x, scale_factor=float(self.upsample), mode="nearest") if self.upsample > 1 else x
            y = F.conv2d(x, weight, None, self.stride, self.padding)
        if bias is channel_bias is residual is None and self.activation is None:
            return y
        return add_bias(y, bias, channel_bias, residual, self.activation)

    def _has_phases(self, x: Tensor, weight: Tensor) -> bool:
        """Whether an upsampled image is convolved by four 2x2 kernels, without being made: 16 products of a pixel of x
        instead of 36. The kernels are sums of weights, made in each call: of a few pixels that would be the longer
        part. With the rounding of the sums an error in halves is 1.15 to 1.22 times that of PyTorch, which rounds once
        more for the bias; without a bias it would be 1.41 times."""
        if self.upsample != 2 or (self.stride, self.padding) != (1, 1) or weight.shape[2:] != (3, 3):
            return False
        dense = weight.is_contiguous() or is_channels_last(weight)
        few = x.shape[0] * x.shape[2] * x.shape[3] < _FEW_PIXELS
        return x.dtype in (torch.float16, torch.bfloat16) and dense and not few and on_triton(x)

    def extra_repr(self) -> str:
        return f"stride={self.stride}, padding={self.padding}, upsample={self.upsample}, activation={self.activation}"
