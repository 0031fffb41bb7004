"""Kernels of group_norm_silu for any layout: the counterpart of csrc/cpu/group_norm_silu.cpp.

A group that fits in registers is read once, by one program instance. Others are cut into parts of their pixels: one
launch makes the statistics of parts, the next merges them and writes the result, for as many groups at a time as L2
keeps (see plan.py). Contiguous and channels-last tensors differ in their strides.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import channel_factors

# Not specialized: a kernel compiled for one size serves all.
SIZES = ["first_pair", "groups", "width", "part_pixels", "parts"]


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
def load_channels(x, c, p, width, end, channel_stride, pixel_stride, eviction: tl.constexpr):
    """Pixels of some channels of a group, 0 outside of it; and which numbers are inside."""
    inside = (c < width)[:, None] & (p < end)[None, :]
    place = x + c[:, None] * channel_stride + p[None, :] * pixel_stride
    return tl.load(place, mask=inside, other=0.0, eviction_policy=eviction).to(tl.float32), inside


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


@triton.jit(do_not_specialize=SIZES)
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
    d, inside = load_channels(x, c, p, width, pixels, channel_stride, pixel_stride, "")
    total = tl.sum(d)
    if more_channels > 0:
        c1 = block_channels + tl.arange(0, more_channels)
        d1, inside1 = load_channels(x, c1, p, width, pixels, channel_stride, pixel_stride, "")
        total += tl.sum(d1)
    mean = total / count
    d = tl.where(inside, d - mean, 0.0)
    rounding, squares = tl.sum(d), tl.sum(d * d)  # the former of the mean
    if more_channels > 0:
        d1 = tl.where(inside1, d1 - mean, 0.0)
        rounding += tl.sum(d1)
        squares += tl.sum(d1 * d1)
    rounding = rounding / count
    variance = squares / count - rounding * rounding
    inverse = 1.0 / tl.sqrt(tl.where(variance < 0, 0.0, variance) + eps)  # NaN stays NaN
    store_channels(
        out, d - rounding, inverse, weight, bias, scale, shift, sample * channels, group * width, c, p, width, pixels,
        channel_stride, pixel_stride, affine, biased, scaled, shifted, silu,
    )  # fmt: skip
    if more_channels > 0:
        store_channels(
            out, d1 - rounding, inverse, weight, bias, scale, shift, sample * channels, group * width, c1, p, width,
            pixels, channel_stride, pixel_stride, affine, biased, scaled, shifted, silu,
        )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
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
            v, inside = load_channels(x, c, pixel + j, width, end, channel_stride, pixel_stride, "evict_last")
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


@triton.jit(do_not_specialize=SIZES)
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
