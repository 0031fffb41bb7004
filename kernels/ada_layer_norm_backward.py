"""Gradients of ada_layer_norm in Triton.

A program instance has several rows of a sample, whose sums leave it as one row. Where scale, shift and gate are the
same for all rows of a sample, as in DiT, all gradients but dx follow from two sums a channel: of the gradient g, and of
g times the normalized x. No GPU has run it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.ada_layer_norm import warps_for
from fastdiff.runtime.device import processors

MAX_ROWS = 64


@triton.jit
def ada_layer_norm_backward_kernel(
    x, scale, shift, gate, weight, bias, grad, dx, dscale, dshift, dgate, dweight, dbias,
    rows, rows_each, channels, eps,
    x_batch, x_row, scale_batch, scale_row, shift_batch, shift_row, gate_batch, gate_row, grad_batch, grad_row,
    affine: tl.constexpr, biased: tl.constexpr, gated: tl.constexpr, together: tl.constexpr,
    scale_rows: tl.constexpr, shift_rows: tl.constexpr, gate_rows: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """Gradients of `rows_each` rows of a sample. dx is (batch, rows, channels); so are dscale, dshift and dgate where
    the argument has rows (scale_rows, ...); otherwise these, dweight and dbias are this instance's sums over its rows,
    (batch, instances of a sample, channels) in float32. together: none has rows, and the only sums are those of the
    gradient, to dshift, and of it times the normalized x, to dscale. Statistics are computed again.
    """
    b, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, block)
    inside = c < channels
    w = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32) if affine else tl.full((block,), 1.0, tl.float32)
    sum_scale = tl.zeros((block,), tl.float32)
    sum_shift = tl.zeros((block,), tl.float32)
    if together:
        slope = w * (1 + tl.load(scale + b * scale_batch + c, mask=inside, other=0.0).to(tl.float32))
        if gated:
            slope = slope * tl.load(gate + b * gate_batch + c, mask=inside, other=0.0).to(tl.float32)
    else:
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
        g = tl.load(grad + b * grad_batch + s * grad_row + c, mask=inside, other=0.0).to(tl.float32)
        place = (b * rows + s) * channels + c
        if together:
            sum_shift += g
            sum_scale += g * normal
            g_normal = g * slope
        else:
            y = normal * w
            if biased:
                y = y + tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
            factor = 1 + tl.load(scale + b * scale_batch + s * scale_row + c, mask=inside, other=0.0).to(tl.float32)
            if gated:
                z = y * factor
                z += tl.load(shift + b * shift_batch + s * shift_row + c, mask=inside, other=0.0).to(tl.float32)
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
            if biased:
                sum_bias += g
            g_normal = g * w
        mean_g = tl.sum(g_normal, axis=0) / channels
        mean_product = tl.sum(g_normal * normal, axis=0) / channels
        result = (g_normal - mean_g - normal * mean_product) * inverse
        tl.store(dx + place, result.to(dx.dtype.element_ty), mask=inside)
    place = (b * tl.num_programs(1) + part) * channels + c
    if not scale_rows:
        tl.store(dscale + place, sum_scale, mask=inside)
    if not shift_rows:
        tl.store(dshift + place, sum_shift, mask=inside)
    if not together:
        if gated and not gate_rows:
            tl.store(dgate + place, sum_gate, mask=inside)
        if affine:
            tl.store(dweight + place, sum_weight, mask=inside)
        if biased:
            tl.store(dbias + place, sum_bias, mask=inside)


def rows_of_an_instance(batch: int, rows: int, size: int, sums: int, available: int, tensors: int = 3) -> int:
    """How many rows an instance has: two instances a multiprocessor, but so many rows that the instances' sums in
    float32 are at most a tenth of the tensors of x's size that are read or written.

    size: bytes of a number; sums: rows that leave an instance; available: multiprocessors.
    """
    least = -(-10 * 4 * sums // (size * tensors))
    return min(MAX_ROWS, max(4, least, batch * rows // (2 * available)))


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
    Sums are in float32 and do not change from run to run.
    """
    batch, rows, channels = x.shape
    modulation = {"scale": scale, "shift": shift} | ({} if gate is None else {"gate": gate})
    vectors = {name: t for name, t in (("weight", weight), ("bias", bias)) if t is not None}
    results = {"x": torch.empty(x.shape, dtype=x.dtype, device=x.device)}
    if not x.numel():
        results |= {name: torch.zeros_like(t) for name, t in (modulation | vectors).items()}
        return results
    per_row = {name for name, t in modulation.items() if t.shape[1] == rows > 1}
    together = not per_row
    summed = ["scale", "shift"] if together else [name for name in (*modulation, *vectors) if name not in per_row]
    tensors = 3 + 2 * len(per_row)
    rows_each = rows_of_an_instance(batch, rows, x.element_size(), len(summed), processors(x.device), tensors)
    parts = triton.cdiv(rows, rows_each)
    results |= {name: torch.empty(x.shape, dtype=x.dtype, device=x.device) for name in per_row}
    sums = dict(zip(summed, torch.empty((len(summed), batch, parts, channels), dtype=torch.float32, device=x.device)))
    held = [x if t is None else t for t in (x, scale, shift, gate, grad)]
    strides = [n for t in held for n in (t.stride(0), t.stride(1) if t.shape[1] > 1 else 0)]
    outputs = [(results | sums).get(name, x) for name in ("scale", "shift", "gate", "weight", "bias")]
    ada_layer_norm_backward_kernel[batch, parts](
        *held[:4], x if weight is None else weight, x if bias is None else bias, grad, results["x"], *outputs,
        rows, rows_each, channels, eps, *strides,
        weight is not None, bias is not None, gate is not None, together,
        *(name in per_row for name in ("scale", "shift", "gate")),
        triton.next_power_of_2(channels), num_warps=warps_for(channels), enable_fp_fusion=True,
    )  # fmt: skip
    totals = {name: parts_of.sum(1, keepdim=True) for name, parts_of in sums.items()}
    if together:
        totals = _from_two_sums(totals["scale"], totals["shift"], modulation, vectors)
    for name, total in totals.items():
        results[name] = (total.sum((0, 1)) if name in vectors else total).to(x.dtype)
    return results


def _from_two_sums(
    product: Tensor, gradient: Tensor, modulation: dict[str, Tensor], vectors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients of all vectors, (B, 1, C), from the sums over rows of the gradient, and of it times the normalized x.

    With n = LN(x) without weight: out = gate (factor (weight n + bias) + shift), factor = 1 + scale.
    """
    factor, shift = 1 + modulation["scale"].float(), modulation["shift"].float()
    with_y = product
    if "weight" in vectors:
        with_y = with_y * vectors["weight"].float()
    if "bias" in vectors:
        with_y = with_y + gradient * vectors["bias"].float()
    found, gate = {}, None
    if "gate" in modulation:
        gate = modulation["gate"].float()
        found["gate"] = factor * with_y + shift * gradient
        product, gradient, with_y = product * gate, gradient * gate, with_y * gate
    found |= {"scale": with_y, "shift": gradient}
    found |= {name: factor * (product if name == "weight" else gradient) for name in vectors}
    return found
