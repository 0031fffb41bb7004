"""ada_layer_norm in Triton: the counterpart of csrc/cpu/ada_layer_norm.cpp.

A program instance has one row, which stays in registers: one read of x, one write. No GPU has run it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_CHANNELS = 16384


@triton.jit
def ada_layer_norm_kernel(
    x, scale, shift, gate, residual, weight, bias, out,
    rows, channels, eps,
    x_batch, x_row, scale_batch, scale_row, shift_batch, shift_row, gate_batch, gate_row, residual_batch, residual_row,
    affine: tl.constexpr, biased: tl.constexpr, gated: tl.constexpr, added: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """Strides are in numbers, the last one is 1; `block` is a power of two >= channels. Arithmetic is float32."""
    index = tl.program_id(0).to(tl.int64)
    b, s = index // rows, index % rows
    c = tl.arange(0, block)
    inside = c < channels
    v = tl.load(x + b * x_batch + s * x_row + c, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(v, axis=0) / channels
    d = tl.where(inside, v - mean, 0.0)
    rounding = tl.sum(d, axis=0) / channels  # of the mean
    variance = tl.maximum(tl.sum(d * d, axis=0) / channels - rounding * rounding, 0.0)
    y = (d - rounding) / tl.sqrt(variance + eps)
    if affine:
        y = y * tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
        if biased:
            y = y + tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    y = y * (1 + tl.load(scale + b * scale_batch + s * scale_row + c, mask=inside, other=0.0).to(tl.float32))
    y = y + tl.load(shift + b * shift_batch + s * shift_row + c, mask=inside, other=0.0).to(tl.float32)
    if gated:
        y = y * tl.load(gate + b * gate_batch + s * gate_row + c, mask=inside, other=0.0).to(tl.float32)
    if added:
        y = y + tl.load(residual + b * residual_batch + s * residual_row + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + index * channels + c, y.to(out.dtype.element_ty), mask=inside)


def warps_for(channels: int) -> int:
    """Warps that a row is spread over: 8 numbers a lane, between 1 and 16 warps."""
    return min(16, max(1, triton.next_power_of_2(channels) // 256))


def ada_layer_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """As fastdiff.ops.ada_layer_norm, for tensors that Triton can reach with a contiguous last dimension and at most
    `MAX_CHANNELS` channels."""
    batch, rows, channels = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    held = [x if t is None else t for t in (x, scale, shift, gate, residual)]
    strides = [n for t in held for n in (t.stride(0), t.stride(1) if t.shape[1] > 1 else 0)]
    ada_layer_norm_kernel[(batch * rows,)](
        *held, x if weight is None else weight, x if bias is None else bias, out,
        rows, channels, eps, *strides,
        weight is not None, bias is not None, gate is not None, residual is not None,
        triton.next_power_of_2(channels), num_warps=warps_for(channels), enable_fp_fusion=True,
    )  # fmt: skip
    return out
