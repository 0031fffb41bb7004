"""Products with few rows, such as the modulation of all blocks by one vector a sample: the weight is read once.

There is no matrix instruction in it, as each number of the weight is needed once a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..activations import activate
from .forward import follow

MOST = 8  # rows


@triton.jit
def load_few(x, row, rows, x_row, k, inputs):
    """Some numbers of a row of x in float32, the same for all columns, 0 beyond the inputs; of the last row again where
    there is no such row."""
    return tl.load(x + tl.minimum(row, rows - 1) * x_row + k, mask=k < inputs, other=0.0).to(tl.float32)[None, :]


@triton.jit
def store_few(
    total, row, rows, column, columns, bias, gate, residual, out, tokens,
    gate_batch, gate_row, residual_batch, residual_row,
    activation: tl.constexpr, has_bias: tl.constexpr, has_gate: tl.constexpr, has_residual: tl.constexpr,
):  # fmt: skip
    """Add up the products of a row with some columns, and what follows them."""
    row += tl.zeros_like(column)
    inside = (column < columns) & (row < rows)
    y = tl.sum(total, axis=1)
    if has_bias:
        y += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    y = follow(
        activate(y, activation), gate, residual, row, column, inside, tokens,
        gate_batch, gate_row, residual_batch, residual_row, has_gate, has_residual,
    )  # fmt: skip
    tl.store(out + row * columns + column, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def linear_few_kernel(
    x, weight, bias, gate, residual, out,
    rows, parts, columns, inputs, tokens, x_row, weight_row, gate_batch, gate_row, residual_batch, residual_row,
    activation: tl.constexpr, has_bias: tl.constexpr, has_gate: tl.constexpr, has_residual: tl.constexpr,
    rows_each: tl.constexpr, block_columns: tl.constexpr, block_inputs: tl.constexpr,
):  # fmt: skip
    """residual + gate act(x W^T + bias) for 1, 2 or 4 rows and some columns. Instances with the same columns follow
    each other, `parts` of them, so that L2 keeps the weight for the next. Arguments as of linear_kernel."""
    index = tl.program_id(0)
    row = index % parts * rows_each
    column = index // parts * block_columns + tl.arange(0, block_columns)
    there = (column < columns)[:, None]
    weight += tl.where(column < columns, column, 0).to(tl.int64)[:, None] * weight_row
    s0 = tl.zeros((block_columns, block_inputs), tl.float32)
    s1, s2, s3 = s0, s0, s0
    for start in range(0, inputs, block_inputs):
        k = start + tl.arange(0, block_inputs)
        inside = there & (k < inputs)[None, :]
        w = tl.load(weight + k[None, :], mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
        s0 += w * load_few(x, row, rows, x_row, k, inputs)
        if rows_each > 1:
            s1 += w * load_few(x, row + 1, rows, x_row, k, inputs)
        if rows_each > 2:
            s2 += w * load_few(x, row + 2, rows, x_row, k, inputs)
            s3 += w * load_few(x, row + 3, rows, x_row, k, inputs)
    for number in tl.static_range(rows_each):
        total = s0 if number == 0 else s1 if number == 1 else s2 if number == 2 else s3
        store_few(
            total, row + number, rows, column, columns, bias, gate, residual, out, tokens,
            gate_batch, gate_row, residual_batch, residual_row, activation, has_bias, has_gate, has_residual,
        )  # fmt: skip


def few_options(rows: int, columns: int) -> tuple[int, dict[str, int]]:
    """How many program instances there are, and options of the launch.

    8 columns and two warps took 151 us for two rows of 1152 and a weight of 28 x 6912 columns on one H100 in float16
    (PyTorch 2.11, Triton 3.6, in a CUDA graph), 16 to 64 columns 157 to 159, cuBLAS 162. More rows were not measured.
    """
    each = min(4, triton.next_power_of_2(rows))
    parts = triton.cdiv(rows, each)
    options = {"rows": rows, "parts": parts, "rows_each": each, "block_columns": 8, "block_inputs": 128, "num_warps": 2}
    return parts * triton.cdiv(columns, 8), options
