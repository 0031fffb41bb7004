"""What lies around the 2x2 convolution that stands for nearest upsampling and a 3x3 convolution: the weights before it,
and its four results in their places after it.

Row 2i of the upsampled image sees rows i - 1, i, i of the image, row 2i + 1 sees i, i, i + 1; columns likewise. So each
of the four phases of the result is a 2x2 convolution of the image, with sums of the 3x3 weights. Arithmetic is float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launching import launch
from .forward import tile


@triton.jit
def phases_kernel(weight, out, outputs, channels, into, tap, out_channel, block: tl.constexpr):
    """The weights of the four phases (phase, output, 2, 2, channel), of an output whose strides are given."""
    output = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * block + tl.arange(0, block)
    inside = c < channels
    weight += output * out_channel + c * into
    for phase in tl.static_range(4):
        for place in tl.static_range(4):
            down, across = phase // 2 + place // 2, phase % 2 + place % 2
            total = tl.zeros((block,), tl.float32)
            for y in tl.static_range(3):
                for x in tl.static_range(3):
                    # Phase 0: its first row is that of weight 0, the second of 1 and 2; phase 1: 0 and 1, then 2.
                    if ((y + phase // 2 + 1) // 2 == down) and ((x + phase % 2 + 1) // 2 == across):
                        total += tl.load(weight + (y * 3 + x) * tap, mask=inside, other=0.0).to(tl.float32)
            start = ((phase * outputs + output) * 4 + place) * channels
            tl.store(out + start + c, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def interleave_kernel(
    y, bias, out, rows, channels, height, width,
    has_bias: tl.constexpr, block_rows: tl.constexpr, block_columns: tl.constexpr,
):  # fmt: skip
    """Pixels of the result, rows of channels, each from its phase; height and width: of the image."""
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    c = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    inside = (row < rows)[:, None] & (c < channels)[None, :]
    across, line = row % (2 * width), row // (2 * width)
    down, sample = line % (2 * height), line // (2 * height)
    pixel = (sample * (height + 1) + down // 2 + down % 2) * (width + 1) + across // 2 + across % 2
    source = pixel * (4 * channels) + (down % 2 * 2 + across % 2) * channels
    v = tl.load(y + source[:, None] + c[None, :], mask=inside, other=0.0).to(tl.float32)
    if has_bias:
        v += tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    tl.store(out + row[:, None] * channels + c[None, :], v.to(out.dtype.element_ty), mask=inside)


def phases(weight: Tensor) -> Tensor:
    """(4 K, C, 2, 2), channels-last, of a weight (K, C, 3, 3), contiguous or channels-last: float32, bfloat16 or
    float16, that Triton can reach. Phases (0, 0), (0, 1), (1, 0), (1, 1) follow each other."""
    outputs, channels = weight.shape[:2]
    out = torch.empty((4 * outputs, 2, 2, channels), dtype=weight.dtype, device=weight.device)
    last = not weight.is_contiguous()
    block = min(512, triton.next_power_of_2(channels))
    launch(
        phases_kernel, (outputs, triton.cdiv(channels, block)), weight=weight, out=out, outputs=outputs,
        channels=channels, into=1 if last else 9, tap=channels if last else 1,
        out_channel=9 * channels, block=block, enable_fp_fusion=True,
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)


def interleave(y: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, K, 2 H, 2 W), channels-last, of the phases (N, 4 K, H + 1, W + 1), channels-last, plus the bias (K,)."""
    samples, four, height, width = y.shape
    height, width, channels = height - 1, width - 1, four // 4
    out = torch.empty((samples, 2 * height, 2 * width, channels), dtype=y.dtype, device=y.device)
    rows, options = samples * 4 * height * width, tile(channels)
    if rows:
        grid = (triton.cdiv(rows, options["block_rows"]), triton.cdiv(channels, options["block_columns"]))
        launch(
            interleave_kernel, grid, y=y, bias=y if bias is None else bias.contiguous(), out=out,
            rows=rows, channels=channels, height=height, width=width, has_bias=bias is not None, **options,
        )  # fmt: skip
    return out.permute(0, 3, 1, 2)
