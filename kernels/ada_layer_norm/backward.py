"""Gradients of ada_layer_norm in Triton.

A program instance has several rows of a sample, whose sums leave it as one row. Where scale and shift are the same for
all rows of a sample, as in DiT, all gradients but that of x follow from two sums per channel: of the gradient g, and of
g times the normalized x. The kernel also goes back through the gated residual of residual_ada_layer_norm.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.runtime.device import properties

from ..launching import launch
from .forward import load_row, normalize, row_options, row_strides

MAX_ROWS = 64


@triton.jit
def ada_layer_norm_backward_kernel(
    x, y, gate, scale, weight, bias, grad, grad_h, dx, dy, dgate, dscale, dshift, dweight, dbias,
    rows, rows_each, channels, eps,
    x_batch, x_row, y_batch, y_row, gate_batch, gate_row, scale_batch, scale_row,
    grad_batch, grad_row, grad_h_batch, grad_h_row,
    has_y: tl.constexpr, has_gate: tl.constexpr, has_scale: tl.constexpr, has_shift: tl.constexpr,
    has_weight: tl.constexpr, has_bias: tl.constexpr, has_grad_h: tl.constexpr,
    gate_rows: tl.constexpr, scale_rows: tl.constexpr, shift_rows: tl.constexpr, two_sums: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """Gradients of `rows_each` rows of a sample, where x is what was normalized, and statistics are computed again.

    grad_h is added to dx; with y, x was residual + gate y, dx is the residual's gradient, and dy is made of it. dx and
    dy are (batch, rows, channels); so are dgate, dscale and dshift where the argument has rows (gate_rows, ...).
    Otherwise these, dweight and dbias are this instance's sums over its rows, (batch, instances of a sample, channels)
    in float32. two_sums: neither scale nor shift has rows, and the only sums beside dgate are those of the gradient, to
    dshift, and of it times the normalized x, to dscale.
    """
    b, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, block)
    inside = c < channels
    w = load_row(weight, c, inside) if has_weight else tl.full((block,), 1.0, tl.float32)
    sum_gate = tl.zeros((block,), tl.float32)
    sum_scale = tl.zeros((block,), tl.float32)
    sum_shift = tl.zeros((block,), tl.float32)
    sum_weight = tl.zeros((block,), tl.float32)
    sum_bias = tl.zeros((block,), tl.float32)
    if two_sums:
        slope = w
        if has_scale:
            slope = slope * (1 + load_row(scale + b * scale_batch, c, inside))
    for s in range(part * rows_each, tl.minimum((part + 1) * rows_each, rows)):
        normal, inverse = normalize(load_row(x + b * x_batch + s * x_row, c, inside), inside, channels, eps)
        g = load_row(grad + b * grad_batch + s * grad_row, c, inside)
        place = (b * rows + s) * channels + c
        if two_sums:
            sum_shift += g
            sum_scale += g * normal
            g_normal = g * slope
        else:
            if has_scale:
                affine = normal * w
                if has_bias:
                    affine = affine + load_row(bias, c, inside)
                if scale_rows:
                    tl.store(dscale + place, (g * affine).to(dscale.dtype.element_ty), mask=inside)
                else:
                    sum_scale += g * affine
            if shift_rows:
                tl.store(dshift + place, g.to(dshift.dtype.element_ty), mask=inside)
            elif has_shift:
                sum_shift += g
            if has_scale:
                g = g * (1 + load_row(scale + b * scale_batch + s * scale_row, c, inside))
            sum_weight += g * normal
            sum_bias += g
            g_normal = g * w
        mean_g = tl.sum(g_normal, axis=0) / channels
        mean_product = tl.sum(g_normal * normal, axis=0) / channels
        result = (g_normal - mean_g - normal * mean_product) * inverse
        if has_grad_h:
            result += load_row(grad_h + b * grad_h_batch + s * grad_h_row, c, inside)
        of_y = result
        if has_gate:
            of_gate = result * load_row(y + b * y_batch + s * y_row, c, inside)
            if gate_rows:
                tl.store(dgate + place, of_gate.to(dgate.dtype.element_ty), mask=inside)
            else:
                sum_gate += of_gate
            of_y = result * load_row(gate + b * gate_batch + s * gate_row, c, inside)
        if has_y:
            tl.store(dy + place, of_y.to(dy.dtype.element_ty), mask=inside)
        tl.store(dx + place, result.to(dx.dtype.element_ty), mask=inside)
    place = (b * tl.num_programs(1) + part) * channels + c
    if has_gate and not gate_rows:
        tl.store(dgate + place, sum_gate, mask=inside)
    if two_sums:
        if (has_scale or has_shift) or (has_weight or has_bias):  # Triton 3.2 takes two at a time
            tl.store(dscale + place, sum_scale, mask=inside)
            tl.store(dshift + place, sum_shift, mask=inside)
    else:
        if has_scale and not scale_rows:
            tl.store(dscale + place, sum_scale, mask=inside)
        if has_shift and not shift_rows:
            tl.store(dshift + place, sum_shift, mask=inside)
        if has_weight:
            tl.store(dweight + place, sum_weight, mask=inside)
        if has_bias:
            tl.store(dbias + place, sum_bias, mask=inside)


def rows_of_an_instance(batch: int, rows: int, size: int, sums: int, available: int, tensors: int = 3) -> int:
    """How many rows an instance has: two instances a multiprocessor, but so few instances that their sums in float32
    are at most a tenth of the tensors of x's size that are read or written.

    size: bytes of a number; sums: rows that leave an instance; available: multiprocessors.
    """
    instances = max(1, rows * size * tensors // (10 * 4 * sums)) if sums else rows
    least = triton.cdiv(rows, instances)
    return min(MAX_ROWS, max(4, least, batch * rows // (2 * available)))


def backward(
    grad: Tensor, x: Tensor, *, grad_h: Tensor | None = None, y: Tensor | None = None, gate: Tensor | None = None,
    scale: Tensor | None, shift: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float,
) -> dict[str, Tensor]:  # fmt: skip
    """What the kernel makes of `grad`: gradients of x, and of the arguments that are given, by name."""
    batch, rows, channels = x.shape
    optional = {"gate": gate, "scale": scale, "shift": shift, "weight": weight, "bias": bias}
    given = {name: t for name, t in optional.items() if t is not None}
    of_rows = ["x"] if y is None else ["x", "y"]
    if not x.numel():
        return {name: torch.zeros_like(x) for name in of_rows} | {n: torch.zeros_like(t) for n, t in given.items()}
    per_row = [name for name, t in given.items() if t.ndim == 3 and t.shape[1] == rows > 1]
    two_sums = "scale" not in per_row and "shift" not in per_row
    summed = [name for name in given if name not in per_row]
    if two_sums:
        summed = [name for name in summed if name == "gate"] + ["scale", "shift"] * any(n != "gate" for n in given)
    results = {n: torch.empty(x.shape, dtype=x.dtype, device=x.device) for n in (*of_rows, *per_row)}
    tensors = 3 + 2 * len(per_row) + (y is not None) + (gate is not None) + (grad_h is not None)
    available = properties(x.device).multiprocessors
    rows_each = rows_of_an_instance(batch, rows, x.element_size(), len(summed), available, tensors)
    parts = triton.cdiv(rows, rows_each)
    sums = dict(zip(summed, torch.empty((len(summed), batch, parts, channels), dtype=torch.float32, device=x.device)))
    inputs = dict(y=y, gate=gate, scale=scale, grad_h=grad_h)
    outputs = {f"d{name}": (results | sums).get(name, x) for name in ("x", "y", *optional)}
    launch(
        ada_layer_norm_backward_kernel, (batch, parts), x=x, grad=grad,
        **{name: x if t is None else t for name, t in dict(**inputs, weight=weight, bias=bias).items()},
        **outputs, rows=rows, rows_each=rows_each, channels=channels, eps=eps, **row_strides(x=x, grad=grad, **inputs),
        **{f"has_{name}": name in given for name in optional}, has_y=y is not None, has_grad_h=grad_h is not None,
        **{f"{name}_rows": name in per_row for name in ("gate", "scale", "shift")}, two_sums=two_sums,
        **row_options(channels),
    )  # fmt: skip
    totals = {name: parts_of.sum(1, keepdim=True) for name, parts_of in sums.items()}
    if two_sums and "scale" in totals:
        totals |= _from_two_sums(totals["scale"], totals["shift"], given)
    for name in given:
        if name not in per_row:
            total = totals[name]
            results[name] = (total.sum((0, 1)) if name in ("weight", "bias") else total).to(x.dtype)
    return results


def _from_two_sums(product: Tensor, gradient: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients, (B, 1, C), from the sums over rows of the gradient, and of it times the normalized x.

    With n = LN(x) without weight: out = factor (weight n + bias) + shift, factor = 1 + scale.
    """
    found = {"shift": gradient} if "shift" in given else {}
    if "scale" in given:
        found["scale"] = product * given["weight"].float() if "weight" in given else product
        if "bias" in given:
            found["scale"] = found["scale"] + gradient * given["bias"].float()
    factor = 1 + given["scale"].float() if "scale" in given else 1.0
    sums = {"weight": product, "bias": gradient}
    return found | {name: total * factor for name, total in sums.items() if name in given}


def ada_layer_norm_backward(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, *, weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-6,
) -> dict[str, Tensor]:  # fmt: skip
    """Gradients of x, scale, shift and, where given, weight and bias, by name, from the gradient of the result.

    Arguments as of ada_layer_norm; grad: (B, S, C), last dimension contiguous. Sums are in float32 and do not change
    from run to run.
    """
    return backward(grad, x, scale=scale, shift=shift, weight=weight, bias=bias, eps=eps)
