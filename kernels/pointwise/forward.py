"""Sums after a convolution, and gated linear units, each with one read of what there is and one write.

cuDNN's convolutions in halves do not add a bias: PyTorch adds it, the embedding of the time and the residual in three
passes over memory. Arithmetic is float32, and results are rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..activations import activate
from ..launching import launch

# Numbers of a program instance, and its warps: the quickest that one H100 has timed (docs/notes/gpu-kernels.md).
_SUM, _UNIT = (4096, 8), (2048, 8)


@triton.jit
def add_bias_kernel(
    x, bias, channel_bias, residual, out,
    rows, columns, pixels, channels,
    has_bias: tl.constexpr, has_channel_bias: tl.constexpr, has_residual: tl.constexpr, silu: tl.constexpr,
    channels_last: tl.constexpr, one_sample: tl.constexpr, block_rows: tl.constexpr, block_columns: tl.constexpr,
):  # fmt: skip
    """act(x + bias[c] + channel_bias[n, c] + residual) of a tile. Rows are pixels of all samples with the channels as
    columns, or, not channels-last, channels of all samples with the pixels as columns. one_sample: all pixels of a tile
    are of one sample."""
    first = tl.program_id(0) * block_rows
    line, column = tl.arange(0, block_rows), tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    row = first + line
    in_rows, in_columns = row < rows, column < columns
    inside = in_rows[:, None] & in_columns[None, :]
    start = first.to(tl.int64) * columns  # places within a tile fit 32 bits
    place = line[:, None] * columns + column[None, :]
    y = tl.load(x + start + place, mask=inside, other=0.0).to(tl.float32)
    if has_bias:
        if channels_last:
            y += tl.load(bias + column, mask=in_columns, other=0.0).to(tl.float32)[None, :]
        else:
            y += tl.load(bias + row % channels, mask=in_rows, other=0.0).to(tl.float32)[:, None]
    if has_channel_bias:
        if one_sample:
            vector = channel_bias + first // pixels * channels + column
            y += tl.load(vector, mask=in_columns, other=0.0).to(tl.float32)[None, :]
        elif channels_last:
            vector = channel_bias + (row // pixels * channels)[:, None] + column[None, :]
            y += tl.load(vector, mask=inside, other=0.0).to(tl.float32)
        else:
            y += tl.load(channel_bias + row, mask=in_rows, other=0.0).to(tl.float32)[:, None]
    if has_residual:
        y += tl.load(residual + start + place, mask=inside, other=0.0).to(tl.float32)
    if silu:
        y = y * tl.sigmoid(y)
    tl.store(out + start + place, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gated_kernel(
    x, out, rows, columns, x_row, activation: tl.constexpr, block_rows: tl.constexpr, block_columns: tl.constexpr
):  # fmt: skip
    """a act(b) of a tile, where a row of x is [a, b]."""
    first, line = tl.program_id(0) * block_rows, tl.arange(0, block_rows)
    column = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    inside = (first + line < rows)[:, None] & (column < columns)[None, :]
    x += first.to(tl.int64) * x_row
    out += first.to(tl.int64) * columns
    place = x + line[:, None] * x_row + column[None, :]
    a = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(place + columns, mask=inside, other=0.0).to(tl.float32)
    y = a * activate(b, activation)
    tl.store(out + line[:, None] * columns + column[None, :], y.to(out.dtype.element_ty), mask=inside)


def add_bias(
    x: Tensor, bias: Tensor | None = None, channel_bias: Tensor | None = None, residual: Tensor | None = None,
    activation: str | None = None, *, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """act(x + bias + channel_bias + residual), in x's memory or in that of `out`, which is returned.

    x: (N, C, H, W), contiguous or channels-last, float32, bfloat16 or float16, that Triton can reach. bias: (C,).
    channel_bias: (N, C). residual: of x's shape. activation: None or "silu". All of x's dtype. out: with x's strides.
    """
    out = x if out is None else out
    if not x.numel():
        return out
    samples, channels, height, width = x.shape
    last = not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    pixels = height * width
    rows, columns = (samples * pixels, channels) if last else (samples * channels, pixels)
    given = dict(
        bias=None if bias is None else bias.contiguous(),
        channel_bias=None if channel_bias is None else channel_bias.contiguous(),
        residual=None if residual is None else residual.contiguous(memory_format=layout),
    )
    options = tile(columns)
    one_sample = last and pixels % options["block_rows"] == 0
    grid = (triton.cdiv(rows, options["block_rows"]), triton.cdiv(columns, options["block_columns"]))
    launch(
        add_bias_kernel, grid, x=x, out=out, **{name: x if t is None else t for name, t in given.items()},
        **{f"has_{name}": t is not None for name, t in given.items()},
        rows=rows, columns=columns, pixels=pixels, channels=channels, silu=activation == "silu", channels_last=last,
        one_sample=one_sample, **options,
    )  # fmt: skip
    return out


def gated(x: Tensor, activation: str) -> Tensor:
    """a act(b), where x is [a, b] in its last dimension. Shazeer 2020, "GLU Variants Improve Transformer".

    x: (..., 2 N), contiguous, float32, bfloat16 or float16, that Triton can reach. activation: "gelu", "gelu_tanh" or
    "silu". Returns (..., N), contiguous.
    """
    columns = x.shape[-1] // 2
    out = torch.empty((*x.shape[:-1], columns), dtype=x.dtype, device=x.device)
    if out.numel():
        options = tile(columns, *_UNIT)
        rows = out.numel() // columns
        grid = (triton.cdiv(rows, options["block_rows"]), triton.cdiv(columns, options["block_columns"]))
        launch(
            gated_kernel, grid, x=x, out=out, rows=rows, columns=columns, x_row=2 * columns,
            activation=activation, **options,
        )  # fmt: skip
    return out


def tile(columns: int, numbers: int = _SUM[0], warps: int = _SUM[1]) -> dict[str, int | bool]:
    """Of a launch: a tile of so many numbers, up to 256 columns wide, which divides the columns where it can."""
    dividing = (wide for wide in (256, 128, 64) if columns % wide == 0)
    wide = next(dividing, min(256, triton.next_power_of_2(columns)))
    return {"block_rows": numbers // wide, "block_columns": wide, "num_warps": warps, "enable_fp_fusion": True}
