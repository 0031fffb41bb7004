"""Kernels for channels-last maps, whose pixels are rows of all channels, one after the other in memory.

Statistics are a mean and the sum of squares around it, so that a mean far from 0 costs nothing. A tile has a place for
each of block_groups x block_width channels, both powers of two; the places behind a group's last channel are empty.
`width` and `groups` are constants of the compilation: only then does Triton know which numbers lie side by side.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import channel_factors


@triton.jit
def read_rows(
    x, other, conv_bias, channel_bias, p, end, c, in_columns, channels,
    split: tl.constexpr, conv_biased: tl.constexpr, channel_biased: tl.constexpr, residual: tl.constexpr,
):  # fmt: skip
    """Pixels p with the channels c, 0 where there are none, in x's dtype: of x, with what is added to it; or, where
    split is not 0, of x, which has `split` channels, and `other`, which has the rest."""
    inside = (p < end)[:, None] & in_columns[None, :]
    if split > 0:
        first = x + p[:, None] * split + c[None, :]
        second = other + p[:, None] * (channels - split) + (c - split)[None, :]
        v = tl.load(first, mask=inside & (c < split)[None, :], other=0.0)
        # Of the two one is 0.
        v += tl.load(second, mask=inside & (c >= split)[None, :], other=0.0)
    else:
        place = p[:, None] * channels + c[None, :]
        v = tl.load(x + place, mask=inside, other=0.0)
        if (conv_biased or channel_biased) or residual:  # Triton 3.2 takes two at a time
            dtype = v.dtype
            v = v.to(tl.float32)
            if conv_biased:
                v += tl.load(conv_bias + c, mask=in_columns, other=0.0).to(tl.float32)[None, :]
            if channel_biased:
                v += tl.load(channel_bias + c, mask=in_columns, other=0.0).to(tl.float32)[None, :]
            if residual:
                v += tl.load(other + place, mask=inside, other=0.0).to(tl.float32)
            v = v.to(dtype)
    return v


@triton.jit
def by_group(v, block_groups: tl.constexpr, block_width: tl.constexpr):
    """Sums of a tile's groups, over all of its pixels."""
    return tl.sum(tl.reshape(tl.sum(v, axis=0), (block_groups, block_width)), axis=1)


@triton.jit
def to_places(v, block_groups: tl.constexpr, block_width: tl.constexpr):
    """Each group's number at all of its places."""
    return tl.reshape(tl.broadcast_to(v[:, None], (block_groups, block_width)), (block_groups * block_width,))


@triton.jit(do_not_specialize=["pixels", "part_pixels"])
def rows_statistics_kernel(
    x, other, conv_bias, channel_bias, partial, h,
    pixels, part_pixels,
    groups: tl.constexpr, width: tl.constexpr, split: tl.constexpr,
    conv_biased: tl.constexpr, channel_biased: tl.constexpr, residual: tl.constexpr, written: tl.constexpr,
    block_groups: tl.constexpr, block_width: tl.constexpr, block_pixels: tl.constexpr,
):  # fmt: skip
    """Mean, and sum of squares around it, of all groups in the pixels of part program_id(0), sample program_id(1).

    partial: (samples, parts, 2, groups). h: the sum in x's dtype, of which the statistics are, if it is `written`.
    """
    part, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channels = groups * width
    k = tl.arange(0, block_groups * block_width)
    c = (k // block_width) * width + k % block_width
    in_columns = (k % block_width < width) & (k // block_width < groups)
    i = tl.arange(0, block_pixels)
    start, end = part * part_pixels, tl.minimum((part + 1) * part_pixels, pixels)
    x += sample * pixels * (split if split > 0 else channels)
    other += sample * pixels * (channels - split)
    channel_bias += sample * channels
    h += sample * pixels * channels
    v = read_rows(
        x, other, conv_bias, channel_bias, start + i, end, c, in_columns, channels,
        split, conv_biased, channel_biased, residual,
    )  # fmt: skip
    # Each place of the tile sums differences from its own first number, which are small where the mean is large.
    origin = v.to(tl.float32)
    total = tl.zeros((block_pixels, block_groups * block_width), tl.float32)
    squares = tl.zeros((block_pixels, block_groups * block_width), tl.float32)
    for pixel in range(start, end, block_pixels):
        p = pixel + i
        following = read_rows(
            x, other, conv_bias, channel_bias, p + block_pixels, end, c, in_columns, channels,
            split, conv_biased, channel_biased, residual,
        )  # fmt: skip
        inside = (p < end)[:, None] & in_columns[None, :]
        if written:
            tl.store(h + p[:, None] * channels + c[None, :], v, mask=inside)
        d = tl.where(inside, v.to(tl.float32) - origin, 0.0)
        total += d
        squares += d * d
        v = following
    # Of each place: count, mean, squares around it. Then those of groups.
    count = (end - start).to(tl.float32) * width
    n = tl.maximum((end - start - i + block_pixels - 1) // block_pixels, 0).to(tl.float32)[:, None]
    inside = (start + i < end)[:, None] & in_columns[None, :]
    delta = total / tl.maximum(n, 1.0)
    squares -= total * delta
    place_mean = origin + delta
    mean = by_group(tl.where(inside, n * place_mean, 0.0), block_groups, block_width) / count
    d = tl.where(inside, place_mean - to_places(mean, block_groups, block_width)[None, :], 0.0)
    rounding = by_group(n * d, block_groups, block_width) / count  # of the mean
    squares = by_group(squares + n * d * d, block_groups, block_width) - count * rounding * rounding
    g = tl.arange(0, block_groups)
    partial += (sample * tl.num_programs(0) + part) * (2 * groups)
    tl.store(partial + g, mean + rounding, mask=g < groups)
    tl.store(partial + groups + g, squares, mask=g < groups)


@triton.jit
def merge_parts(
    partial, parts, part_pixels, pixels, width, first_group, groups, block_parts: tl.constexpr,
    block_groups: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squares around it of some groups of a sample, from those of its parts; in a fixed order."""
    t = tl.arange(0, block_parts)[:, None]
    g = first_group + tl.arange(0, block_groups)[None, :]
    inside = (t < parts) & (g < groups)
    n = (tl.where(t < parts, tl.minimum(pixels - t * part_pixels, part_pixels), 0) * width).to(tl.float32)
    count = pixels.to(tl.float32) * width
    place = partial + t * (2 * groups) + g
    means = tl.load(place, mask=inside, other=0.0)
    squares = tl.load(place + groups, mask=inside, other=0.0)
    mean = tl.sum(n * means, axis=0) / count
    d = tl.where(inside, means - mean[None, :], 0.0)
    rounding = tl.sum(n * d, axis=0) / count
    d -= rounding[None, :]
    return mean + rounding, tl.sum(tl.where(inside, squares + n * d * d, 0.0), axis=0)


@triton.jit(do_not_specialize=["pixels", "width", "groups", "parts", "part_pixels"])
def rows_merge_kernel(
    partial, merged,
    pixels, width, groups, parts, part_pixels, block_parts: tl.constexpr, block_groups: tl.constexpr,
):  # fmt: skip
    """Statistics of groups from those of many parts, as of one part. merged: (samples, 1, 2, groups)."""
    sample = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * block_groups
    partial += sample * parts * (2 * groups)
    mean, squares = merge_parts(
        partial, parts, part_pixels, pixels, width, first, groups, block_parts, block_groups
    )  # fmt: skip
    g = first + tl.arange(0, block_groups)
    merged += sample * (2 * groups)
    tl.store(merged + g, mean, mask=g < groups)
    tl.store(merged + groups + g, squares, mask=g < groups)


@triton.jit(do_not_specialize=["pixels", "width", "groups", "parts", "part_pixels", "runs", "tiles"])
def rows_apply_kernel(
    x, other, weight, bias, scale, shift, partial, out,
    pixels, channels, width, groups, parts, part_pixels, runs, tiles, eps,
    split: tl.constexpr, affine: tl.constexpr, biased: tl.constexpr, scaled: tl.constexpr, shifted: tl.constexpr,
    silu: tl.constexpr, block_parts: tl.constexpr, touched_groups: tl.constexpr,
    block_channels: tl.constexpr, block_pixels: tl.constexpr, backwards: tl.constexpr,
):  # fmt: skip
    """The result, from rows_statistics_kernel's parts: program_id(0)th block_pixels pixels, program_id(1)th
    block_channels channels, sample program_id(2). The channels belong to at most touched_groups groups.

    backwards: the pixels are those of the program_id(1)th tile and the channels the program_id(0)th ones; all `runs`
    parts of the statistics have `tiles` tiles, of which the last ones come first.
    """
    sample = tl.program_id(2).to(tl.int64)
    if backwards:
        number = tl.program_id(1)
        tile, column = number % runs * tiles + tiles - 1 - number // runs, tl.program_id(0)
    else:
        tile, column = tl.program_id(0), tl.program_id(1)
    p = tile * block_pixels + tl.arange(0, block_pixels)
    first = column * block_channels
    c = first + tl.arange(0, block_channels)
    in_columns = c < channels
    x += sample * pixels * (split if split > 0 else channels)
    other += sample * pixels * (channels - split)
    # Before the statistics, for which it need not wait.
    v = read_rows(x, other, x, x, p, pixels, c, in_columns, channels, split, False, False, False).to(tl.float32)
    mean, squares = merge_parts(
        partial + sample * parts * (2 * groups), parts, part_pixels, pixels, width, first // width, groups,
        block_parts, touched_groups,
    )  # fmt: skip
    inverse = 1.0 / tl.sqrt(squares / (pixels.to(tl.float32) * width) + eps)
    own = tl.arange(0, touched_groups)[:, None] == (c // width - first // width)[None, :]
    mean = tl.sum(tl.where(own, mean[:, None], 0.0), axis=0)
    inverse = tl.sum(tl.where(own, inverse[:, None], 0.0), axis=0)
    factor, offset = channel_factors(
        weight, bias, scale, shift, sample * channels, c, in_columns, affine, biased, scaled, shifted
    )
    y = (v - mean[None, :]) * (inverse * factor)[None, :] + offset[None, :]
    if silu:
        y = y * tl.sigmoid(y)
    out += sample * pixels * channels
    place = p[:, None] * channels + c[None, :]
    tl.store(out + place, y.to(out.dtype.element_ty), mask=(p < pixels)[:, None] & in_columns[None, :])


@triton.jit(do_not_specialize=["pixels"])
def rows_whole_kernel(
    x, other, conv_bias, channel_bias, weight, bias, scale, shift, out, h,
    pixels, eps,
    groups: tl.constexpr, width: tl.constexpr, split: tl.constexpr,
    conv_biased: tl.constexpr, channel_biased: tl.constexpr, residual: tl.constexpr, written: tl.constexpr,
    affine: tl.constexpr, biased: tl.constexpr, scaled: tl.constexpr, shifted: tl.constexpr, silu: tl.constexpr,
    block_width: tl.constexpr, block_pixels: tl.constexpr,
):  # fmt: skip
    """Group program_id(0) of sample program_id(1), all of it in registers."""
    group, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channels = groups * width
    k, p = tl.arange(0, block_width), tl.arange(0, block_pixels)
    c = group * width + k
    in_columns = k < width
    x += sample * pixels * (split if split > 0 else channels)
    other += sample * pixels * (channels - split)
    v = read_rows(
        x, other, conv_bias, channel_bias + sample * channels, p, pixels, c, in_columns, channels,
        split, conv_biased, channel_biased, residual,
    )  # fmt: skip
    inside = (p < pixels)[:, None] & in_columns[None, :]
    place = sample * pixels * channels + p[:, None] * channels + c[None, :]
    if written:
        tl.store(h + place, v, mask=inside)
    count = pixels.to(tl.float32) * width
    d = tl.where(inside, v.to(tl.float32), 0.0)
    mean = tl.sum(d) / count
    d = tl.where(inside, d - mean, 0.0)
    rounding = tl.sum(d) / count  # of the mean
    variance = tl.sum(d * d) / count - rounding * rounding
    inverse = 1.0 / tl.sqrt(tl.where(variance < 0, 0.0, variance) + eps)  # NaN stays NaN
    factor, offset = channel_factors(
        weight, bias, scale, shift, sample * channels, c, in_columns, affine, biased, scaled, shifted
    )
    y = (d - rounding) * (inverse * factor)[None, :] + offset[None, :]
    if silu:
        y = y * tl.sigmoid(y)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)
