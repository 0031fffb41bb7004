"""ada_layer_norm in Triton: the counterpart of csrc/cpu/ada_layer_norm.cpp.

A program instance has one row, or several narrow ones, which stay in registers: one read of x, one write. The sums of a
row are its own. The kernel also adds a gated branch to a residual first, for residual_ada_layer_norm.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.runtime.device import properties

from ..launching import Launch
from .plan import Plan, block_of, plan, single

LARGEST = tl.constexpr(3.4e38)
SMALL = tl.constexpr(2.0**-96)
LEAST = tl.constexpr(2.0**-120)


@triton.jit
def load_row(row, c, inside):
    """Columns c of a row, or of several, in float32, 0 where not inside."""
    return tl.load(row + c, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def sum_of_row(v):
    """Of one row a number, of (rows, columns) a column."""
    if len(v.shape) == 1:
        return tl.sum(v, axis=0)
    else:
        return tl.sum(v, axis=1, keep_dims=True)


@triton.jit
def any_row(found):
    """Whether `found` holds for one row, or for any."""
    if len(found.shape) == 0:
        return found
    else:
        return tl.max(found.to(tl.int32)) > 0


@triton.jit
def normalize(v, inside, channels, eps):
    """The normalized row or rows, 0 outside, and 1 / their deviation."""
    d, variance = deviations(v, inside, channels)
    # Numbers beyond 1e19 or so: once more, in units in which squares are small. Other rows get the same numbers again.
    scale = tl.where(variance <= LARGEST, 1.0, SMALL)
    huge = scale != 1.0
    if any_row(huge):
        d, variance = deviations(v * scale, inside, channels)
        variance = tl.where(huge & (variance < LEAST), LEAST, variance)
    inverse = 1.0 / tl.sqrt(variance + eps * scale * scale)
    return tl.where(inside, d * inverse, 0.0), inverse * scale


@triton.jit
def deviations(v, inside, channels):
    """The differences from the mean, 0 outside, and the variance; this may not be finite."""
    mean = sum_of_row(v) / channels
    d = tl.where(inside, v - mean, 0.0)
    rounding = sum_of_row(d) / channels  # of the mean
    variance = sum_of_row(d * d) / channels - rounding * rounding
    return tl.where(inside, d - rounding, 0.0), tl.where(variance < 0, 0.0, variance)


@triton.jit
def load_given(start, s, row, c, inside, columns, of_rows: tl.constexpr):
    """Rows s of a tensor that has `of_rows`, otherwise its one row."""
    if of_rows:
        return load_row(start + s * row, c, inside)
    else:
        return load_row(start, c, columns)


@triton.jit
def ada_layer_norm_kernel(
    x, residual, gate, scale, shift, weight, bias, h, out,
    rows, parts, channels, eps,
    x_batch, x_row, residual_batch, residual_row, gate_batch, gate_row, scale_batch, scale_row, shift_batch, shift_row,
    has_residual: tl.constexpr, has_gate: tl.constexpr, has_scale: tl.constexpr, has_shift: tl.constexpr,
    has_weight: tl.constexpr, has_bias: tl.constexpr,
    gate_rows: tl.constexpr, scale_rows: tl.constexpr, shift_rows: tl.constexpr,
    rows_each: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """out = (1 + scale) LN(h) + shift. h is x; with a residual it is residual + gate x, and it is stored.

    A program instance has `rows_each` rows of a sample, one of its `parts`. Strides are in numbers, the last one is 1;
    `block` is a power of two >= channels. gate_rows, scale_rows, shift_rows: whether these differ from row to row.
    Arithmetic is float32.
    """
    index = tl.program_id(0)
    b, s = (index // parts).to(tl.int64), (index % parts).to(tl.int64) * rows_each
    c = tl.arange(0, block)
    if rows_each > 1:
        s = s + tl.arange(0, rows_each)[:, None]
        c = c[None, :]
    columns = c < channels
    inside = columns
    if rows_each > 1:
        inside = columns & (s < rows)
    v = load_row(x + b * x_batch + s * x_row, c, inside)
    place = (b * rows + s) * channels + c
    if has_residual:
        if has_gate:
            v = v * load_given(gate + b * gate_batch, s, gate_row, c, inside, columns, gate_rows)
        # What is normalized is h as it is stored.
        rounded = (v + load_row(residual + b * residual_batch + s * residual_row, c, inside)).to(h.dtype.element_ty)
        tl.store(h + place, rounded, mask=inside)
        v = rounded.to(tl.float32)
    y, _ = normalize(v, inside, channels, eps)
    if has_weight:
        y = y * load_row(weight, c, columns)
    if has_bias:
        y = y + load_row(bias, c, columns)
    if has_scale:
        y = y * (1 + load_given(scale + b * scale_batch, s, scale_row, c, inside, columns, scale_rows))
    if has_shift:
        y = y + load_given(shift + b * shift_batch, s, shift_row, c, inside, columns, shift_rows)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


def row_strides(**tensors: Tensor | None) -> dict[str, int]:
    """Strides of batch and row, by the kernels' names: x_batch, x_row; 0 where all rows are one, or there is none."""
    found = {}
    for name, t in tensors.items():
        found[f"{name}_batch"] = 0 if t is None else t.stride(0)
        found[f"{name}_row"] = 0 if t is None or t.shape[1] == 1 else t.stride(1)
    return found


def row_options(channels: int) -> dict[str, int | bool]:
    """Of a launch with one row at a time: the block that holds it, and warps."""
    return {"block": block_of(channels), "num_warps": single(channels).num_warps, "enable_fp_fusion": True}


class Forward:
    """The launch of the kernel for tensors like these, whose last dimension is contiguous. Arguments of `forward`."""

    def __init__(
        self, x: Tensor, *, residual: Tensor | None = None, gate: Tensor | None = None, scale: Tensor | None,
        shift: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, cut: Plan | None = None,
    ) -> None:  # fmt: skip
        batch, rows, channels = x.shape
        self._shape, self._strides = (batch, rows, channels), (rows * channels, channels, 1)
        self._dtype, self._device, self._has_residual = x.dtype, x.device, residual is not None
        modulation = dict(residual=residual, gate=gate, scale=scale, shift=shift)
        optional = dict(**modulation, weight=weight, bias=bias)
        per_row = {f"{name}_rows": t is not None and t.shape[1] > 1 for name, t in modulation.items()}
        del per_row["residual_rows"]
        self._launch = None
        if x.numel():
            available = properties(x.device).multiprocessors
            chosen = cut or plan(batch, rows, channels, x.element_size(), available)
            parts = triton.cdiv(rows, chosen.rows_each)
            self._launch = Launch(
                ada_layer_norm_kernel, (batch * parts,), rows=rows, parts=parts, channels=channels, eps=float(eps),
                **{f"has_{name}": t is not None for name, t in optional.items()},
                **per_row, **row_strides(x=x, **modulation), rows_each=chosen.rows_each, block=block_of(channels),
                num_warps=chosen.num_warps, enable_fp_fusion=True,
            )  # fmt: skip

    def __call__(
        self, x: Tensor, residual: Tensor | None, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None,
        weight: Tensor | None, bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """h and the result."""
        out = torch.empty_strided(self._shape, self._strides, dtype=self._dtype, device=self._device)
        h = torch.empty_like(out) if self._has_residual else x
        if self._launch is not None:
            self._launch(
                x, x if residual is None else residual, x if gate is None else gate, x if scale is None else scale,
                x if shift is None else shift, x if weight is None else weight, x if bias is None else bias, h, out,
            )  # fmt: skip
        return h, out


def forward(
    x: Tensor, *, residual: Tensor | None = None, gate: Tensor | None = None, scale: Tensor | None,
    shift: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, cut: Plan | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """h (x itself without a residual) and the result of the kernel, for tensors whose last dimension is contiguous.
    cut: a plan that is not its own choice."""
    given = dict(residual=residual, gate=gate, scale=scale, shift=shift, weight=weight, bias=bias)
    return Forward(x, **given, eps=eps, cut=cut)(x, **given)  # type: ignore[arg-type]


def ada_layer_norm(
    x: Tensor, scale: Tensor, shift: Tensor, *, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:  # fmt: skip
    """As fastdiff.ops.ada_layer_norm, for tensors that Triton can reach whose last dimension is contiguous."""
    return forward(x, scale=scale, shift=shift, weight=weight, bias=bias, eps=eps)[1]
