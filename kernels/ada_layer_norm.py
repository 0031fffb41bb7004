"""ada_layer_norm in Triton: the counterpart of csrc/cpu/ada_layer_norm.cpp, and its gradients.

Forward, a program instance has one row, which stays in registers: one read of x, one write. Backward, it has several
rows of a sample, so that the sums over rows leave it as one row. No GPU has run them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.devices import processors

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


@triton.jit
def ada_layer_norm_backward_kernel(
    x, scale, shift, gate, weight, bias, grad, dx, dscale, dshift, dgate, dweight, dbias,
    rows, rows_each, channels, eps,
    x_batch, x_row, scale_batch, scale_row, shift_batch, shift_row, gate_batch, gate_row, grad_batch, grad_row,
    affine: tl.constexpr, biased: tl.constexpr, gated: tl.constexpr,
    scale_rows: tl.constexpr, shift_rows: tl.constexpr, gate_rows: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """Gradients of `rows_each` rows of a sample. dx is (batch, rows, channels); so are dscale, dshift and dgate where
    the argument has rows (scale_rows, ...); otherwise these, dweight and dbias are this instance's sums over its rows,
    (batch, instances of a sample, channels) in float32. Statistics are computed again, as in the forward kernel.
    """
    b, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, block)
    inside = c < channels
    w = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32) if affine else tl.full((block,), 1.0, tl.float32)
    sum_scale = tl.zeros((block,), tl.float32)
    sum_shift = tl.zeros((block,), tl.float32)
    sum_gate = tl.zeros((block,), tl.float32)
    sum_weight = tl.zeros((block,), tl.float32)
    sum_bias = tl.zeros((block,), tl.float32)
    for s in range(part * rows_each, tl.minimum((part + 1) * rows_each, rows)):
        v = tl.load(x + b * x_batch + s * x_row + c, mask=inside, other=0.0).to(tl.float32)
        mean = tl.sum(v, axis=0) / channels
        d = tl.where(inside, v - mean, 0.0)
        rounding = tl.sum(d, axis=0) / channels  # of the mean
        variance = tl.maximum(tl.sum(d * d, axis=0) / channels - rounding * rounding, 0.0)
        inverse = 1.0 / tl.sqrt(variance + eps)
        normal = tl.where(inside, (d - rounding) * inverse, 0.0)
        y = normal * w
        if biased:
            y = y + tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
        factor = 1 + tl.load(scale + b * scale_batch + s * scale_row + c, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + b * grad_batch + s * grad_row + c, mask=inside, other=0.0).to(tl.float32)
        place = (b * rows + s) * channels + c
        if gated:
            z = y * factor + tl.load(shift + b * shift_batch + s * shift_row + c, mask=inside, other=0.0).to(tl.float32)
            if gate_rows:
                tl.store(dgate + place, (g * z).to(dgate.dtype.element_ty), mask=inside)
            else:
                sum_gate += g * z
            g = g * tl.load(gate + b * gate_batch + s * gate_row + c, mask=inside, other=0.0).to(tl.float32)
        if scale_rows:
            tl.store(dscale + place, (g * y).to(dscale.dtype.element_ty), mask=inside)
        else:
            sum_scale += g * y
        if shift_rows:
            tl.store(dshift + place, g.to(dshift.dtype.element_ty), mask=inside)
        else:
            sum_shift += g
        g = g * factor
        if affine:
            sum_weight += g * normal
            g_normal = g * w
        else:
            g_normal = g
        if biased:
            sum_bias += g
        mean_g = tl.sum(g_normal, axis=0) / channels
        mean_product = tl.sum(g_normal * normal, axis=0) / channels
        result = (g_normal - mean_g - normal * mean_product) * inverse
        tl.store(dx + place, result.to(dx.dtype.element_ty), mask=inside)
    place = (b * tl.num_programs(1) + part) * channels + c
    if gated and not gate_rows:
        tl.store(dgate + place, sum_gate, mask=inside)
    if not scale_rows:
        tl.store(dscale + place, sum_scale, mask=inside)
    if not shift_rows:
        tl.store(dshift + place, sum_shift, mask=inside)
    if affine:
        tl.store(dweight + place, sum_weight, mask=inside)
    if biased:
        tl.store(dbias + place, sum_bias, mask=inside)


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


def ada_layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    gate: Tensor | None = None,
) -> dict[str, Tensor]:
    """Gradients of x, scale, shift and, where given, gate, weight and bias, by name, from the gradient of the result.

    That of a residual is `grad` itself. Arguments as of ada_layer_norm; grad: (B, S, C), last dimension contiguous.
    """
    batch, rows, channels = x.shape
    modulation = {"scale": scale, "shift": shift} | ({} if gate is None else {"gate": gate})
    vectors = {name: t for name, t in (("weight", weight), ("bias", bias)) if t is not None}
    results = {"x": torch.empty(x.shape, dtype=x.dtype, device=x.device)}
    if not x.numel():
        results |= {name: torch.zeros_like(t) for name, t in (modulation | vectors).items()}
        return results
    # Two instances a multiprocessor, which is what its registers hold: the fewer, the less the sums over rows weigh.
    rows_each = min(64, max(4, batch * rows // (2 * processors(x.device))))
    parts = triton.cdiv(rows, rows_each)
    per_row = {name: t.shape[1] == rows > 1 for name, t in modulation.items()}
    sums = {}
    for name in (*modulation, *vectors):
        if per_row.get(name):
            results[name] = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        else:
            sums[name] = torch.empty((batch, parts, channels), dtype=torch.float32, device=x.device)
    held = [x if t is None else t for t in (x, scale, shift, gate, grad)]
    strides = [n for t in held for n in (t.stride(0), t.stride(1) if t.shape[1] > 1 else 0)]
    outputs = [(results | sums).get(name, x) for name in ("scale", "shift", "gate", "weight", "bias")]
    ada_layer_norm_backward_kernel[batch, parts](
        *held[:4], x if weight is None else weight, x if bias is None else bias, grad, results["x"], *outputs,
        rows, rows_each, channels, eps, *strides,
        weight is not None, bias is not None, gate is not None,
        *(per_row.get(name, False) for name in ("scale", "shift", "gate")),
        triton.next_power_of_2(channels), num_warps=warps_for(channels), enable_fp_fusion=True,
    )  # fmt: skip
    for name, parts_of in sums.items():
        total = parts_of.sum((0, 1)) if name in vectors else parts_of.sum(1, keepdim=True)
        results[name] = total.to(x.dtype)
    return results
