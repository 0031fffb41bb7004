"""Kernels for contiguous maps, where the channels of a group follow each other: a group is one run of numbers.

Each place of a tile sums differences from its own first number, which are small where the mean is large. Places are
merged once, behind the last tile, where forward.py merges each tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import channel_factors
from .forward import merge_statistics

SIZES = ["first_pair", "groups", "width", "tiles", "parts"]  # not specialized: a kernel compiled for one serves all


@triton.jit
def statistics_of_run(x, first, last, size, block: tl.constexpr):
    """Mean, and sum of squares around it, of tiles [first, last) of a group of `size` numbers."""
    i = tl.arange(0, block)
    v = tl.load(x + first * block + i, mask=first * block + i < size, other=0.0)
    origin = v.to(tl.float32)
    total = tl.zeros((block,), tl.float32)
    squares = tl.zeros((block,), tl.float32)
    for t in range(first, last):
        at = t * block + i
        end = tl.where(last > t + 1, size, 0)  # nothing follows the last tile
        following = tl.load(x + at + block, mask=at + block < end, other=0.0)
        d = tl.where(at < size, v.to(tl.float32) - origin, 0.0)
        total += d
        squares += d * d
        v = following
    # Of each place: count, mean, squares around it. Then of all.
    numbers = tl.minimum(last * block, size) - first * block
    count = numbers.to(tl.float32)
    n = tl.maximum((numbers - i + block - 1) // block, 0).to(tl.float32)
    delta = total / tl.maximum(n, 1.0)
    squares -= total * delta
    place = origin + delta
    mean = tl.sum(n * place) / count
    d = tl.where(n > 0, place - mean, 0.0)
    rounding = tl.sum(n * d) / count  # of the mean
    return mean + rounding, tl.sum(squares + n * d * d) - count * rounding * rounding


@triton.jit
def write_run(
    x, weight, bias, scale, shift, out, mean, inverse, sample_start, first_channel, first, last, size, pixels, width,
    affine: tl.constexpr, biased: tl.constexpr, scaled: tl.constexpr, shifted: tl.constexpr, silu: tl.constexpr,
    block: tl.constexpr, even: tl.constexpr,
):  # fmt: skip
    """The result for tiles [first, last) of a group, the last first: it was read last, and is still in a cache."""
    i = tl.arange(0, block)
    for back in range(0, last - first):
        t = last - 1 - back
        at = t * block + i
        v = tl.load(x + at, mask=at < size, other=0.0, eviction_policy="evict_first").to(tl.float32)
        c = t * block // pixels + tl.zeros((1,), tl.int32) if even else at // pixels
        factor, offset = channel_factors(
            weight, bias, scale, shift, sample_start, first_channel + c, c < width,
            affine, biased, scaled, shifted,
        )  # fmt: skip
        y = (v - mean) * (inverse * factor) + offset
        if silu:
            y = y * tl.sigmoid(y)
        tl.store(out + at, y.to(out.dtype.element_ty), mask=at < size, eviction_policy="evict_first")


@triton.jit(do_not_specialize=SIZES)
def group_norm_silu_flat_statistics_kernel(x, partial, first_pair, tiles, size, block: tl.constexpr):
    """Mean, and sum of squares around it, of part program_id(1) of group first_pair + program_id(0), all groups of all
    samples being numbered. partial: (samples, groups, parts, 2)."""
    pair, part = first_pair + tl.program_id(0), tl.program_id(1)
    x += pair.to(tl.int64) * size
    last = tl.minimum((part + 1) * tiles, tl.cdiv(size, block))
    mean, squares = statistics_of_run(x, part * tiles, last, size, block)
    partial += (pair * tl.num_programs(1) + part) * 2
    tl.store(partial, mean)
    tl.store(partial + 1, squares)


@triton.jit(do_not_specialize=SIZES)
def group_norm_silu_flat_apply_kernel(
    x, weight, bias, scale, shift, partial, out,
    first_pair, groups, channels, pixels, width, tiles, parts, size, eps,
    affine: tl.constexpr, biased: tl.constexpr, scaled: tl.constexpr, shifted: tl.constexpr, silu: tl.constexpr,
    block: tl.constexpr, even: tl.constexpr, parts_block: tl.constexpr,
):  # fmt: skip
    """The result of what group_norm_silu_flat_statistics_kernel's instances had."""
    pair, part = first_pair + tl.program_id(0), tl.program_id(1)
    sample, group = (pair // groups).to(tl.int64), pair % groups
    x += pair.to(tl.int64) * size
    out += pair.to(tl.int64) * size
    last = tl.minimum((part + 1) * tiles, tl.cdiv(size, block))
    mean, inverse = merge_statistics(partial + pair * parts * 2, parts, tiles * block, size, 1, eps, parts_block)
    write_run(
        x, weight, bias, scale, shift, out, mean, inverse, sample * channels, group * width, part * tiles, last, size,
        pixels, width, affine, biased, scaled, shifted, silu, block, even,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def group_norm_silu_flat_kernel(
    x, weight, bias, scale, shift, out,
    groups, channels, pixels, width, size, eps,
    affine: tl.constexpr, biased: tl.constexpr, scaled: tl.constexpr, shifted: tl.constexpr, silu: tl.constexpr,
    block: tl.constexpr, even: tl.constexpr,
):  # fmt: skip
    """A group of a sample, by one instance that reads it twice, the second time from a cache."""
    pair = tl.program_id(0)
    sample, group = (pair // groups).to(tl.int64), pair % groups
    x += pair.to(tl.int64) * size
    out += pair.to(tl.int64) * size
    last = tl.cdiv(size, block)
    mean, squares = statistics_of_run(x, 0, last, size, block)
    inverse = 1.0 / tl.sqrt(tl.where(squares < 0, 0.0, squares) / size.to(tl.float32) + eps)  # NaN stays NaN
    write_run(
        x, weight, bias, scale, shift, out, mean, inverse, sample * channels, group * width, 0, last, size, pixels,
        width, affine, biased, scaled, shifted, silu, block, even,
    )  # fmt: skip
