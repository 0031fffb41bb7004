"""group_norm_silu in Triton: the counterpart of csrc/cpu/group_norm_silu.cpp.

A group that fits in registers is read once, by one program instance. Others are cut into parts of their pixels: one
launch makes the statistics of parts, the next merges them and writes the result, for as many groups at a time as the
second cache keeps (see group_norm_plan). Contiguous and channels-last tensors differ in their strides. No GPU has run
it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.group_norm_plan import Plan, plan
from fastdiff.runtime.device import processors, second_cache

SIZES = ["first_pair", "groups", "width", "part_pixels", "parts"]


def jit(function: Callable) -> triton.JITFunction:
    """triton.jit that compiles once for all of SIZES."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(function, do_not_specialize=[name for name in names if name in SIZES])


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
def merge_statistics(partial, parts, part_pixels, pixels, width, eps, parts_block: tl.constexpr):
    """Mean and 1 / deviation of a group from (mean, sum of squares around it) of its parts."""
    i = tl.arange(0, parts_block)
    inside = i < parts
    n = tl.where(inside, tl.minimum(pixels - i * part_pixels, part_pixels) * width, 0).to(tl.float32)
    count = pixels.to(tl.float32) * width
    origin = tl.load(partial)  # the differences between means are small beside them
    d = tl.where(inside, tl.load(partial + 2 * i, mask=inside, other=0.0) - origin, 0.0)
    delta = tl.sum(n * d, axis=0) / count
    d -= delta
    squares = tl.load(partial + 2 * i + 1, mask=inside, other=0.0)
    return origin + delta, 1.0 / tl.sqrt((tl.sum(squares, axis=0) + tl.sum(n * d * d, axis=0)) / count + eps)


@triton.jit
def load_channels(x, c, p, width, pixels, channel_stride, pixel_stride):
    """Some channels of a group, 0 outside of it; and which numbers are inside."""
    inside = (c < width)[:, None] & (p < pixels)[None, :]
    v = tl.load(x + c[:, None] * channel_stride + p[None, :] * pixel_stride, mask=inside, other=0.0)
    return v.to(tl.float32), inside


@triton.jit
def store_channels(
    out, d, inverse, weight, bias, scale, shift, sample_start, first_channel, c, p, width, pixels,
    channel_stride, pixel_stride,
    affine: tl.constexpr, biased: tl.constexpr, scaled: tl.constexpr, shifted: tl.constexpr, silu: tl.constexpr,
):  # fmt: skip
    """The result for channels whose differences from the mean are d."""
    factor, offset = channel_factors(
        weight, bias, scale, shift, sample_start, first_channel + c, c < width, affine, biased, scaled, shifted
    )
    y = d * (inverse * factor)[:, None] + offset[:, None]
    if silu:
        y = y * tl.sigmoid(y)
    inside = (c < width)[:, None] & (p < pixels)[None, :]
    place = c[:, None] * channel_stride + p[None, :] * pixel_stride
    tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


@jit
def group_norm_silu_whole_kernel(
    x, weight, bias, scale, shift, out,
    groups, channels, pixels, width, eps, channel_stride, pixel_stride,
    affine: tl.constexpr, biased: tl.constexpr, scaled: tl.constexpr, shifted: tl.constexpr, silu: tl.constexpr,
    block_channels: tl.constexpr, block_pixels: tl.constexpr, more_channels: tl.constexpr,
):  # fmt: skip
    """A group of a sample, all of it in registers: block_channels and then more_channels channels."""
    sample, group = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups
    start = sample * channels * pixels + group * width * channel_stride
    x += start
    out += start
    c, p = tl.arange(0, block_channels), tl.arange(0, block_pixels)
    count = pixels.to(tl.float32) * width
    d, inside = load_channels(x, c, p, width, pixels, channel_stride, pixel_stride)
    total = tl.sum(d)
    if more_channels > 0:
        c1 = block_channels + tl.arange(0, more_channels)
        d1, inside1 = load_channels(x, c1, p, width, pixels, channel_stride, pixel_stride)
        total += tl.sum(d1)
    mean = total / count
    d = tl.where(inside, d - mean, 0.0)
    rounding, squares = tl.sum(d), tl.sum(d * d)  # the former of the mean
    if more_channels > 0:
        d1 = tl.where(inside1, d1 - mean, 0.0)
        rounding += tl.sum(d1)
        squares += tl.sum(d1 * d1)
    rounding = rounding / count
    inverse = 1.0 / tl.sqrt(tl.maximum(squares / count - rounding * rounding, 0.0) + eps)
    store_channels(
        out, d - rounding, inverse, weight, bias, scale, shift, sample * channels, group * width, c, p, width, pixels,
        channel_stride, pixel_stride, affine, biased, scaled, shifted, silu,
    )  # fmt: skip
    if more_channels > 0:
        store_channels(
            out, d1 - rounding, inverse, weight, bias, scale, shift, sample * channels, group * width, c1, p, width,
            pixels, channel_stride, pixel_stride, affine, biased, scaled, shifted, silu,
        )  # fmt: skip


@jit
def group_norm_silu_statistics_kernel(
    x, partial,
    first_pair, groups, channels, pixels, width, part_pixels, channel_stride, pixel_stride,
    block_channels: tl.constexpr, block_pixels: tl.constexpr,
):  # fmt: skip
    """Mean, and sum of squares around it, of part program_id(1) of group first_pair + program_id(0), all groups of all
    samples being numbered. partial: (samples, groups, parts, 2)."""
    pair, part = first_pair + tl.program_id(0), tl.program_id(1)
    sample, group = (pair // groups).to(tl.int64), pair % groups
    x += sample * channels * pixels + group * width * channel_stride
    i, j = tl.arange(0, block_channels), tl.arange(0, block_pixels)
    end = tl.minimum((part + 1) * part_pixels, pixels)
    mean, squares, count = 0.0, 0.0, 0.0
    for first in range(0, width, block_channels):
        c = first + i
        for pixel in range(part * part_pixels, end, block_pixels):
            p = pixel + j
            inside = (c < width)[:, None] & (p < end)[None, :]
            place = x + c[:, None] * channel_stride + p[None, :] * pixel_stride
            v = tl.load(place, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
            n = (tl.minimum(width - first, block_channels) * tl.minimum(end - pixel, block_pixels)).to(tl.float32)
            tile_mean = tl.sum(v) / n
            d = tl.where(inside, v - tile_mean, 0.0)
            rounding = tl.sum(d) / n  # of the tile's mean
            delta = tile_mean - mean + rounding
            squares += tl.sum(d * d) - n * rounding * rounding + delta * delta * (count * n / (count + n))
            count += n
            mean += delta * (n / count)
    partial += (pair * tl.num_programs(1) + part) * 2
    tl.store(partial, mean)
    tl.store(partial + 1, squares)


@jit
def group_norm_silu_apply_kernel(
    x, weight, bias, scale, shift, partial, out,
    first_pair, groups, channels, pixels, width, part_pixels, parts, eps, channel_stride, pixel_stride,
    affine: tl.constexpr, biased: tl.constexpr, scaled: tl.constexpr, shifted: tl.constexpr, silu: tl.constexpr,
    block_channels: tl.constexpr, block_pixels: tl.constexpr, parts_block: tl.constexpr,
):  # fmt: skip
    """The result of what group_norm_silu_statistics_kernel's instances had."""
    pair, part = first_pair + tl.program_id(0), tl.program_id(1)
    sample, group = (pair // groups).to(tl.int64), pair % groups
    start = sample * channels * pixels + group * width * channel_stride
    x += start
    out += start
    i, j = tl.arange(0, block_channels), tl.arange(0, block_pixels)
    end = tl.minimum((part + 1) * part_pixels, pixels)
    mean, inverse = merge_statistics(partial + pair * parts * 2, parts, part_pixels, pixels, width, eps, parts_block)
    for first in range(0, width, block_channels):
        c = first + i
        factor, offset = channel_factors(
            weight, bias, scale, shift, sample * channels, group * width + c, c < width,
            affine, biased, scaled, shifted,
        )  # fmt: skip
        for pixel in range(part * part_pixels, end, block_pixels):
            p = pixel + j
            inside = (c < width)[:, None] & (p < end)[None, :]
            place = c[:, None] * channel_stride + p[None, :] * pixel_stride
            v = tl.load(x + place, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
            y = (v - mean) * inverse * factor[:, None] + offset[:, None]
            if silu:
                y = y * tl.sigmoid(y)
            tl.store(out + place, y.to(out.dtype.element_ty), mask=inside, eviction_policy="evict_first")


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
    cut: Plan | None = None,
) -> Tensor:
    """As fastdiff.ops.group_norm_silu, for tensors that Triton can reach, contiguous or channels-last.

    cut: into parts; chosen by shape and device by default.
    """
    samples, channels = x.shape[:2]
    x, last = in_layout(x)
    out = torch.empty_like(x, memory_format=torch.channels_last if last else torch.contiguous_format)
    if not x.numel():
        return out
    pixels, width = x.numel() // (samples * channels), channels // num_groups
    cut = cut or plan_for(x, num_groups, last)
    adaptive = [t if t is None else t.reshape(samples, channels).contiguous() for t in (scale, shift)]
    vectors = [x if t is None else t.contiguous() for t in (weight, bias, *adaptive)]
    flags = (weight is not None, bias is not None, scale is not None, shift is not None, activation == "silu")
    strides, pairs = ((1, channels) if last else (pixels, 1)), samples * num_groups
    options = {"num_warps": cut.num_warps, "enable_fp_fusion": True}
    if cut.whole:
        group_norm_silu_whole_kernel[(pairs,)](
            x, *vectors, out, num_groups, channels, pixels, width, eps, *strides, *flags, *cut.blocks,
            cut.more_channels, **options,
        )  # fmt: skip
        return out
    partial = torch.empty((samples, num_groups, cut.parts, 2), dtype=torch.float32, device=x.device)
    for first, count in cut.launches(pairs):
        group_norm_silu_statistics_kernel[count, cut.parts](
            x, partial, first, num_groups, channels, pixels, width, cut.part_pixels, *strides, *cut.blocks, **options
        )
        group_norm_silu_apply_kernel[count, cut.parts](
            x, *vectors, partial, out,
            first, num_groups, channels, pixels, width, cut.part_pixels, cut.parts, eps, *strides,
            *flags, *cut.blocks, triton.next_power_of_2(cut.parts), **options,
        )  # fmt: skip
    return out


def in_layout(x: Tensor) -> tuple[Tensor, bool]:
    """x as it is where it is channels-last, otherwise contiguous; whether it is channels-last."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return (x if last else x.contiguous()), last


def plan_for(x: Tensor, num_groups: int, channels_last: bool, **options: int | bool) -> Plan:
    """The plan of x on its device; options: as those of `plan`."""
    samples, channels = x.shape[:2]
    return plan(
        samples, num_groups, channels // num_groups, x.numel() // (samples * channels), x.element_size(),
        channels_last=channels_last, processors=processors(x.device), second_cache=second_cache(x.device), **options,
    )  # fmt: skip
