"""2-D convolution in Triton: a product of matrices, whose rows are read from the image where they are (implicit GEMM).

Images are channels-last, so that the channels of a pixel are a row of the factor for each tap of the kernel. What
follows the convolution is done to the sums in registers, and rounded once. Two images are read as if concatenated. An
upsampled image is not made: its four phases are 2x2 convolutions of the image (see kernels/pointwise/upsampled.py). No
GPU has run it; the tiles are those of a prototype that one H100 has timed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.runtime.device import properties

from ..launching import launch
from .tiles import Size, Tile, tiles

_GROUP = 8  # rows of tiles that go through all columns together, so that the weights stay in L2
_MOST = 1 << 31  # numbers of a tensor: places are 32 bits wide


@triton.jit
def accumulate(
    sums, image, weight_rows, sample, top, left, height, width, channels, row_channels, first, last,
    taps_across: tl.constexpr, whole: tl.constexpr, precision: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """sums + steps [first, last) of the products of an image and the weights. A step is block_k channels of a tap;
    (top, left): where tap 0 is of each pixel; row_channels: of the weights, all images' together; whole: block_k
    divides the channels."""
    lane = tl.arange(0, block_k)
    blocks = tl.cdiv(channels, block_k)
    tap = first // blocks
    c = first % blocks * block_k
    origin = (sample * height + top) * width + left
    for _ in range(first, last):
        down, across = tap // taps_across, tap % taps_across
        y, x = top + down, left + across
        inside = ((y >= 0) & (y < height) & (x >= 0) & (x < width))[:, None]
        place = (origin + down * width + across) * channels
        weights = weight_rows[None, :] + (tap * row_channels + c + lane)[:, None]
        if whole:
            a = tl.load(image + place[:, None] + (c + lane)[None, :], mask=inside, other=0.0)
            b = tl.load(weights)
        else:
            there = c + lane < channels
            a = tl.load(image + place[:, None] + (c + lane)[None, :], mask=inside & there[None, :], other=0.0)
            b = tl.load(weights, mask=there[:, None], other=0.0)
        sums = tl.dot(a, b, sums, input_precision=precision)
        c += block_k
        tap = tl.where(c >= channels, tap + 1, tap)
        c = tl.where(c >= channels, 0, c)
    return sums


@triton.jit
def finish(
    y, bias, channel_bias, residual, out, place, sample, output, inside, outputs,
    has_bias: tl.constexpr, has_channel_bias: tl.constexpr, has_residual: tl.constexpr, silu: tl.constexpr,
):  # fmt: skip
    """Write act(y + bias + channel_bias + residual). place: of each row's pixel in the result."""
    if has_bias:
        y += tl.load(bias + output, mask=output < outputs, other=0.0).to(tl.float32)[None, :]
    if has_channel_bias:
        vectors = channel_bias + sample[:, None] * outputs + output[None, :]
        y += tl.load(vectors, mask=inside, other=0.0).to(tl.float32)
    where = place[:, None] * outputs + output[None, :]
    if has_residual:
        y += tl.load(residual + where, mask=inside, other=0.0).to(tl.float32)
    if silu:
        y = y * tl.sigmoid(y)
    tl.store(out + where, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def pixel_of(row, phase, out_height, out_width, phases: tl.constexpr):
    """Sample, line and column of a row, and its pixel's place in the result, which has twice the lines and columns
    where there are 4 phases."""
    across, line = row % out_width, row // out_width
    down, sample = line % out_height, line // out_height
    place = row
    if phases == 4:
        place = (sample * 2 * out_height + 2 * down + phase // 2) * (2 * out_width) + 2 * across + phase % 2
    return sample, down, across, place


@triton.jit
def conv2d_kernel(
    x, skip, weight, bias, channel_bias, residual, out, partial,
    rows, out_height, out_width, height, width, channels, skip_channels, outputs,
    taps_down: tl.constexpr, taps_across: tl.constexpr, stride: tl.constexpr, padding: tl.constexpr,
    phases: tl.constexpr, has_skip: tl.constexpr, has_bias: tl.constexpr, has_channel_bias: tl.constexpr,
    has_residual: tl.constexpr, silu: tl.constexpr, whole: tl.constexpr, precision: tl.constexpr,
    splits: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    """A tile of pixels and channels of the result, or of a part of its sums. x: (N, H, W, C), skip: (N, H, W, C2),
    weight: (K, kh, kw, C + C2), or (4, K, 2, 2, C + C2) for the phases; out: (N, H', W', K)."""
    number, split, phase = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tall, broad = tl.cdiv(rows, block_m), tl.cdiv(outputs, block_n)
    above = number // (group * broad) * group
    lines = tl.minimum(tall - above, group)
    within = number % (group * broad)
    row = (above + within % lines) * block_m + tl.arange(0, block_m)
    output = within // lines * block_n + tl.arange(0, block_n)
    in_rows = row < rows
    sample, down, across, place = pixel_of(row, phase, out_height, out_width, phases)
    top, left = down * stride - padding, across * stride - padding
    if phases == 4:
        top += phase // 2
        left += phase % 2
        weight += phase * outputs * (taps_down * taps_across * (channels + skip_channels))
    top = tl.where(in_rows, top, height)  # below the image, where all is 0
    row_channels = channels + skip_channels
    weight_rows = weight + tl.where(output < outputs, output, 0) * (taps_down * taps_across * row_channels)

    of_x = taps_down * taps_across * tl.cdiv(channels, block_k)
    of_skip = taps_down * taps_across * tl.cdiv(skip_channels, block_k)
    each = tl.cdiv(of_x + of_skip, splits)
    first, last = split * each, tl.minimum((split + 1) * each, of_x + of_skip)
    sums = tl.zeros((block_m, block_n), tl.float32)
    sums = accumulate(
        sums, x, weight_rows, sample, top, left, height, width, channels, row_channels,
        tl.minimum(first, of_x), tl.minimum(last, of_x), taps_across, whole, precision, block_k,
    )  # fmt: skip
    if has_skip:
        sums = accumulate(
            sums, skip, weight_rows + channels, sample, top, left, height, width, skip_channels, row_channels,
            tl.maximum(first - of_x, 0), tl.maximum(last - of_x, 0), taps_across, whole, precision, block_k,
        )  # fmt: skip

    inside = in_rows[:, None] & (output < outputs)[None, :]
    if splits > 1:
        start = (split * phases + phase).to(tl.int64) * rows * outputs
        tl.store(partial + start + row[:, None] * outputs + output[None, :], sums, mask=inside)
    else:
        finish(
            sums, bias, channel_bias, residual, out, place, sample, output, inside, outputs,
            has_bias, has_channel_bias, has_residual, silu,
        )  # fmt: skip


@triton.jit
def conv2d_combine_kernel(
    partial, bias, channel_bias, residual, out,
    rows, out_height, out_width, outputs,
    phases: tl.constexpr, has_bias: tl.constexpr, has_channel_bias: tl.constexpr, has_residual: tl.constexpr,
    silu: tl.constexpr, splits: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """The parts of the sums, added in their order, and what follows."""
    row = tl.program_id(0) * block_m + tl.arange(0, block_m)
    output = tl.program_id(1) * block_n + tl.arange(0, block_n)
    phase = tl.program_id(2)
    inside = (row < rows)[:, None] & (output < outputs)[None, :]
    sample, _, _, place = pixel_of(row, phase, out_height, out_width, phases)
    sums = tl.zeros((block_m, block_n), tl.float32)
    for split in tl.static_range(splits):
        start = (split * phases + phase).to(tl.int64) * rows * outputs
        sums += tl.load(partial + start + row[:, None] * outputs + output[None, :], mask=inside, other=0.0)
    finish(
        sums, bias, channel_bias, residual, out, place, sample, output, inside, outputs,
        has_bias, has_channel_bias, has_residual, silu,
    )  # fmt: skip


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, skip: Tensor | None = None, stride: int = 1,
    padding: int = 1, channel_bias: Tensor | None = None, residual: Tensor | None = None,
    activation: str | None = None, phases: bool = False, tile: Tile | None = None, precision: str = "ieee",
) -> Tensor:  # fmt: skip
    """act(convolution of [x, skip] + bias + channel_bias + residual), (N, K, H', W'), channels-last.

    x: (N, C, H, W), float32, bfloat16 or float16, that Triton can reach. skip: (N, C2, H, W). weight: (K, C + C2, kh,
    kw). bias: (K,). channel_bias: (N, K). residual: (N, K, H', W'). All of one dtype; what is not channels-last is
    copied. activation: None or "silu". phases: the image is upsampled to twice its size before a 3x3 convolution with
    padding 1; `weight` is then (4 K, C + C2, 2, 2), as kernels.pointwise.phases makes it. tile: another one than its
    own choice. precision: of products in float32, "ieee" or "tf32". See `unsupported` for its limits.
    """
    samples, channels, height, width = x.shape
    parts = 4 if phases else 1
    outputs, all_channels, taps_down, taps_across = weight.shape
    outputs //= parts
    if phases:
        out_height, out_width, larger = height, width, 2
    else:
        out_height, out_width = (
            (size + 2 * padding - taps) // stride + 1 for size, taps in ((height, taps_down), (width, taps_across))
        )
        larger = 1
    shape = samples, outputs, larger * out_height, larger * out_width
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if not out.numel():
        return out
    skip_channels, rows = all_channels - channels, samples * out_height * out_width
    last = torch.channels_last
    x, weight = x.contiguous(memory_format=last), weight.contiguous(memory_format=last)
    skip = None if skip is None else skip.contiguous(memory_format=last)
    residual = None if residual is None else residual.contiguous(memory_format=last)
    tensors = dict(bias=bias, channel_bias=channel_bias, residual=residual)
    followed = {f"has_{name}": t is not None for name, t in tensors.items()} | {"silu": activation == "silu"}
    given = {name: out if t is None else t for name, t in tensors.items()}
    given |= {name: t.contiguous() for name, t in given.items() if name != "residual" and t is not out}
    if tile is None:
        tile = tiles(size_of(x.element_size(), rows, weight.shape, parts, skip_channels), properties(x.device))[0]
    partial = out
    if tile.splits > 1:
        partial = torch.empty((tile.splits, parts * rows, outputs), dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(rows, tile.block_m) * triton.cdiv(outputs, tile.block_n), tile.splits, parts)
    sizes = dict(rows=rows, out_height=out_height, out_width=out_width, outputs=outputs)
    launch(
        conv2d_kernel, grid, x=x, skip=x if skip is None else skip, weight=weight, out=out, partial=partial, **given,
        **sizes, **followed, height=height, width=width, channels=channels, skip_channels=skip_channels,
        taps_down=taps_down, taps_across=taps_across, stride=stride, padding=padding, phases=parts,
        has_skip=skip is not None, whole=channels % tile.block_k == 0 and skip_channels % tile.block_k == 0,
        precision=precision, splits=tile.splits, block_m=tile.block_m, block_n=tile.block_n, block_k=tile.block_k,
        group=_GROUP, num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip
    if tile.splits > 1:
        grid = (triton.cdiv(rows, 32), triton.cdiv(outputs, 64), parts)
        launch(
            conv2d_combine_kernel, grid, partial=partial, out=out, **given, **sizes, **followed, phases=parts,
            splits=tile.splits, block_m=32, block_n=64, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def size_of(size: int, rows: int, weight: Sequence[int], parts: int = 1, skip_channels: int = 0) -> Size:
    """What decides on the tile. size: bytes of a number; weight: its shape, with `parts` phases."""
    outputs, channels, down, across = weight
    whole = channels % 64 == 0 and skip_channels % 64 == 0
    return Size(rows, outputs // parts, down * across * triton.cdiv(channels, 64), size, parts, whole)


def unsupported(x: Tensor, skip: Tensor | None, weight: Tensor, result: tuple[int, ...]) -> str | None:
    """Why the kernel cannot take this, or None. result: the shape of it."""
    largest = max(x.numel(), 0 if skip is None else skip.numel(), weight.numel() * 2, torch.Size(result).numel())
    return None if largest < _MOST else f"a tensor has {largest} numbers, and the kernel takes fewer than {_MOST}"
