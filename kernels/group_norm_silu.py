"""group_norm_silu in Triton: the counterpart of csrc/cpu/group_norm_silu.cpp, forward only.

A program instance has one group of one sample and goes over it twice in blocks: statistics of blocks, merged, then the
output. Contiguous and channels-last tensors differ in their strides. No GPU has run it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


@triton.jit
def group_norm_silu_kernel(
    x, weight, bias, scale, shift, out,
    channels, pixels, width, eps,
    channel_stride, pixel_stride,
    affine: tl.constexpr, biased: tl.constexpr, scaled: tl.constexpr, shifted: tl.constexpr, silu: tl.constexpr,
    channels_last: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """width: channels of a group. Elements of a group are numbered in the order of memory."""
    sample, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start = sample * channels * pixels + group * width * channel_stride
    size = width * pixels
    mean, squares = 0.0, 0.0
    for first in range(0, size, block):
        i = first + tl.arange(0, block)
        c, p = (i % width, i // width) if channels_last else (i // pixels, i % pixels)
        v = tl.load(x + start + c * channel_stride + p * pixel_stride, mask=i < size, other=0.0).to(tl.float32)
        n = tl.minimum(size - first, block).to(tl.float32)
        block_mean = tl.sum(v, axis=0) / n
        d = tl.where(i < size, v - block_mean, 0.0)
        rounding = tl.sum(d, axis=0) / n  # of the block's mean
        delta = block_mean - mean + rounding
        total = first + n
        squares += tl.sum(d * d, axis=0) - n * rounding * rounding + delta * delta * (first * n / total)
        mean += delta * (n / total)
    inverse = 1.0 / tl.sqrt(squares / size + eps)
    for first in range(0, size, block):
        i = first + tl.arange(0, block)
        c, p = (i % width, i // width) if channels_last else (i // pixels, i % pixels)
        place = start + c * channel_stride + p * pixel_stride
        y = (tl.load(x + place, mask=i < size, other=0.0).to(tl.float32) - mean) * inverse
        channel = group * width + c
        if affine:
            y = y * tl.load(weight + channel, mask=i < size, other=0.0).to(tl.float32)
        if biased:
            y = y + tl.load(bias + channel, mask=i < size, other=0.0).to(tl.float32)
        if scaled:
            y = y * (1 + tl.load(scale + sample * channels + channel, mask=i < size, other=0.0).to(tl.float32))
        if shifted:
            y = y + tl.load(shift + sample * channels + channel, mask=i < size, other=0.0).to(tl.float32)
        if silu:
            y = y * tl.sigmoid(y)
        tl.store(out + place, y.to(out.dtype.element_ty), mask=i < size)


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = "silu",
) -> Tensor:
    """As fastdiff.ops.group_norm_silu, for tensors that Triton can reach, contiguous or channels-last."""
    samples, channels = x.shape[:2]
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    x = x if last else x.contiguous()
    out = torch.empty_like(x, memory_format=torch.channels_last if last else torch.contiguous_format)
    if not x.numel():
        return out
    pixels = x.numel() // (samples * channels)
    adaptive = [t if t is None else t.reshape(samples, channels).contiguous() for t in (scale, shift)]
    group_norm_silu_kernel[(samples, num_groups)](
        x, *(x if t is None else t for t in (weight, bias, *adaptive)), out,
        channels, pixels, channels // num_groups, eps, *((1, channels) if last else (pixels, 1)),
        weight is not None, bias is not None, scale is not None, shift is not None, activation == "silu", last, BLOCK,
    )  # fmt: skip
    return out
