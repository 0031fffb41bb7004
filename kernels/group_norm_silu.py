"""group_norm_silu in Triton: the counterpart of csrc/cpu/group_norm_silu.cpp, and its gradients.

Forward, a program instance has one group of one sample and goes over it twice in blocks: statistics of blocks, merged,
then the output. Backward, one kernel makes the statistics again and the sums of each channel, another dx from them.
Contiguous and channels-last tensors differ in their strides. No GPU has run them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
BACKWARD_WARPS = 8


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
    x, last = in_layout(x)
    out = torch.empty_like(x, memory_format=torch.channels_last if last else torch.contiguous_format)
    if not x.numel():
        return out
    pixels = x.numel() // (samples * channels)
    adaptive = [t if t is None else t.reshape(samples, channels).contiguous() for t in (scale, shift)]
    group_norm_silu_kernel[(samples, num_groups)](
        x, *(x if t is None else t for t in (weight, bias, *adaptive)), out,
        channels, pixels, channels // num_groups, eps, *((1, channels) if last else (pixels, 1)),
        weight is not None, bias is not None, scale is not None, shift is not None, activation == "silu", last, BLOCK,
        enable_fp_fusion=True,
    )  # fmt: skip
    return out


@triton.jit
def group_norm_silu_sums_kernel(
    x, weight, bias, scale, shift, grad, statistics, sum_gradient, sum_product,
    channels, pixels, width, eps,
    channel_stride, pixel_stride, grad_sample, grad_channel, grad_pixel,
    affine: tl.constexpr, biased: tl.constexpr, scaled: tl.constexpr, shifted: tl.constexpr, silu: tl.constexpr,
    block_channels: tl.constexpr, block_pixels: tl.constexpr,
):  # fmt: skip
    """Of a group: mean and 1 / deviation; of each of its channels, over pixels: the sum of a, the gradient before the
    activation, and of a times the normalized x. All that is a sum in the gradients follows from these two."""
    sample, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start = sample * channels * pixels + group * width * channel_stride
    grad += sample * grad_sample + group * width * grad_channel
    i, j = tl.arange(0, block_channels), tl.arange(0, block_pixels)
    mean, squares, count = 0.0, 0.0, 0.0
    for first in range(0, width, block_channels):
        c = first + i
        for pixel in range(0, pixels, block_pixels):
            p = pixel + j
            inside = (c < width)[:, None] & (p < pixels)[None, :]
            place = start + c[:, None] * channel_stride + p[None, :] * pixel_stride
            v = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
            n = (tl.minimum(width - first, block_channels) * tl.minimum(pixels - pixel, block_pixels)).to(tl.float32)
            block_mean = tl.sum(v) / n
            d = tl.where(inside, v - block_mean, 0.0)
            rounding = tl.sum(d) / n  # of the block's mean
            delta = block_mean - mean + rounding
            squares += tl.sum(d * d) - n * rounding * rounding + delta * delta * (count * n / (count + n))
            count += n
            mean += delta * (n / count)
    inverse = 1.0 / tl.sqrt(squares / count + eps)
    tl.store(statistics + (sample * tl.num_programs(1) + group) * 2, mean)
    tl.store(statistics + (sample * tl.num_programs(1) + group) * 2 + 1, inverse)
    for first in range(0, width, block_channels):
        c = first + i
        channel = group * width + c
        factor, offset = channel_factors(
            weight, bias, scale, shift, sample * channels, channel, c < width, affine, biased, scaled, shifted
        )
        total = tl.zeros((block_channels,), tl.float32)
        product = tl.zeros((block_channels,), tl.float32)
        for pixel in range(0, pixels, block_pixels):
            p = pixel + j
            inside = (c < width)[:, None] & (p < pixels)[None, :]
            place = start + c[:, None] * channel_stride + p[None, :] * pixel_stride
            normal = (tl.load(x + place, mask=inside, other=0.0).to(tl.float32) - mean) * inverse
            g = tl.load(grad + c[:, None] * grad_channel + p[None, :] * grad_pixel, mask=inside, other=0.0).to(
                tl.float32
            )
            g = through_activation(g, normal * factor[:, None] + offset[:, None], silu)
            total += tl.sum(g, axis=1)
            product += tl.sum(g * normal, axis=1)
        tl.store(sum_gradient + sample * channels + channel, total, mask=c < width)
        tl.store(sum_product + sample * channels + channel, product, mask=c < width)


@triton.jit
def channel_factors(
    weight, bias, scale, shift, sample_start, channel, inside,
    affine: tl.constexpr, biased: tl.constexpr, scaled: tl.constexpr, shifted: tl.constexpr,
):  # fmt: skip
    """(1 + scale) weight and (1 + scale) bias + shift: what takes the normalized x of channels to the activation."""
    factor = tl.full(channel.shape, 1.0, tl.float32)
    offset = tl.zeros(channel.shape, tl.float32)
    if affine:
        factor = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    if biased:
        offset = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    if scaled:
        modulation = 1 + tl.load(scale + sample_start + channel, mask=inside, other=0.0).to(tl.float32)
        factor, offset = factor * modulation, offset * modulation
    if shifted:
        offset = offset + tl.load(shift + sample_start + channel, mask=inside, other=0.0).to(tl.float32)
    return factor, offset


@triton.jit
def through_activation(g, y, silu: tl.constexpr):
    """The gradient before the activation, from that behind it."""
    if silu:
        s = tl.sigmoid(y)
        g = g * s * (1 + y * (1 - s))
    return g


@triton.jit
def group_norm_silu_dx_kernel(
    x, weight, bias, scale, shift, grad, statistics, means, dx,
    channels, pixels, width,
    channel_stride, pixel_stride, grad_sample, grad_channel, grad_pixel,
    affine: tl.constexpr, biased: tl.constexpr, scaled: tl.constexpr, shifted: tl.constexpr, silu: tl.constexpr,
    block_channels: tl.constexpr, block_pixels: tl.constexpr,
):  # fmt: skip
    """dx of a block of pixels of a group. means: of the gradient of the normalized x, and of its product with that."""
    sample, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start = sample * channels * pixels + group * width * channel_stride
    grad += sample * grad_sample + group * width * grad_channel
    index = (sample * tl.num_programs(1) + group) * 2
    mean, inverse = tl.load(statistics + index), tl.load(statistics + index + 1)
    mean_gradient, mean_product = tl.load(means + index), tl.load(means + index + 1)
    p = tl.program_id(2) * block_pixels + tl.arange(0, block_pixels)
    for first in range(0, width, block_channels):
        c = first + tl.arange(0, block_channels)
        factor, offset = channel_factors(
            weight, bias, scale, shift, sample * channels, group * width + c, c < width,
            affine, biased, scaled, shifted,
        )  # fmt: skip
        inside = (c < width)[:, None] & (p < pixels)[None, :]
        place = start + c[:, None] * channel_stride + p[None, :] * pixel_stride
        normal = (tl.load(x + place, mask=inside, other=0.0).to(tl.float32) - mean) * inverse
        g = tl.load(grad + c[:, None] * grad_channel + p[None, :] * grad_pixel, mask=inside, other=0.0).to(tl.float32)
        g = through_activation(g, normal * factor[:, None] + offset[:, None], silu) * factor[:, None]
        result = (g - mean_gradient - normal * mean_product) * inverse
        tl.store(dx + place, result.to(dx.dtype.element_ty), mask=inside)


def group_norm_silu_backward(
    grad: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = "silu",
) -> dict[str, Tensor]:
    """Gradients of x and, where given, weight, bias, scale and shift, by name, from the gradient of the result.

    Arguments as of group_norm_silu; grad: of x's shape. Sums are in float32 and do not change from run to run.
    """
    samples, channels = x.shape[:2]
    given = {"weight": weight, "bias": bias, "scale": scale, "shift": shift}
    given = {name: t for name, t in given.items() if t is not None}
    x, last = in_layout(x)
    grad, _ = in_layout(grad) if not last else (grad.contiguous(memory_format=torch.channels_last), last)
    dx = torch.empty_like(x)
    if not x.numel():
        return {"x": dx} | {name: torch.zeros_like(t) for name, t in given.items()}
    pixels, width = x.numel() // (samples * channels), channels // num_groups
    adaptive = [t if t is None else t.reshape(samples, channels).contiguous() for t in (scale, shift)]
    vectors = [x if t is None else t for t in (weight, bias, *adaptive)]
    sums = torch.empty((2, samples, channels), dtype=torch.float32, device=x.device)
    statistics = torch.empty((samples, num_groups, 2), dtype=torch.float32, device=x.device)
    strides = (1, channels) if last else (pixels, 1)
    layout = (*strides, channels * pixels, *strides)
    flags = (weight is not None, bias is not None, scale is not None, shift is not None, activation == "silu")
    blocks = backward_blocks(width, pixels, last)
    group_norm_silu_sums_kernel[samples, num_groups](
        x, *vectors, grad, statistics, *sums, channels, pixels, width, eps, *layout, *flags, *blocks,
        num_warps=BACKWARD_WARPS, enable_fp_fusion=True,
    )  # fmt: skip
    # What is left are sums over a few numbers a channel.
    modulation = 1.0 if scale is None else 1 + adaptive[0].float()
    factor = modulation * (torch.ones_like(sums[0]) if weight is None else weight.float())
    means = (sums * factor).reshape(2, samples, num_groups, width).sum(-1).permute(1, 2, 0).contiguous() / (
        width * pixels
    )
    group_norm_silu_dx_kernel[samples, num_groups, triton.cdiv(pixels, blocks[1])](
        x, *vectors, grad, statistics, means, dx, channels, pixels, width, *layout, *flags, *blocks,
        num_warps=BACKWARD_WARPS, enable_fp_fusion=True,
    )  # fmt: skip
    results = {
        "weight": (sums[1] * modulation).sum(0),
        "bias": (sums[0] * modulation).sum(0),
        "scale": sums[1] * (1.0 if weight is None else weight.float())
        + sums[0] * (0.0 if bias is None else bias.float()),
        "shift": sums[0],
    }
    return {"x": dx} | {name: results[name].to(t.dtype).reshape(t.shape) for name, t in given.items()}


def in_layout(x: Tensor) -> tuple[Tensor, bool]:
    """x as it is where it is channels-last, otherwise contiguous; whether it is channels-last."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return (x if last else x.contiguous()), last


def backward_blocks(width: int, pixels: int, last: bool) -> tuple[int, int]:
    """Channels and pixels of a tile: 2048 numbers, long in the direction in which memory is contiguous."""
    if last:
        channels = min(128, triton.next_power_of_2(width))
        return channels, 2048 // channels
    pixels = min(2048, max(16, triton.next_power_of_2(pixels)))
    return min(2048 // pixels, triton.next_power_of_2(width)), pixels
