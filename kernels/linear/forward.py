"""A linear layer with what follows it, in Triton: activation or gated unit, gate, residual. The counterpart of
csrc/cpu/linear.cpp.

A program instance has a tile of the result, and goes through K. Products are accumulated in float32; what follows them
is computed in float32 as well, and the result is rounded once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..activations import activate


@triton.jit
def tile_of(index, down, across, group: tl.constexpr):
    """Row and column of a tile, so that `group` rows of tiles follow each other in a column."""
    each = group * across
    first = index // each * group
    size = tl.minimum(down - first, group)
    return first + index % each % size, index % each // size


@triton.jit
def follow(
    y, gate, residual, row, column, inside, tokens,
    gate_batch, gate_row, residual_batch, residual_row, has_gate: tl.constexpr, has_residual: tl.constexpr,
):  # fmt: skip
    """residual + gate y of a tile. row, column: (rows, 1), (1, columns)."""
    if has_gate or has_residual:
        b = (row // tokens).to(tl.int64)
        s = (row % tokens).to(tl.int64)
        if has_gate:
            y = y * tl.load(gate + b * gate_batch + s * gate_row + column, mask=inside, other=0.0).to(tl.float32)
        if has_residual:
            place = residual + b * residual_batch + s * residual_row + column
            y = y + tl.load(place, mask=inside, other=0.0).to(tl.float32)
    return y


@triton.jit
def linear_kernel(
    x, weight, bias, gate, residual, out,
    rows, columns, inputs, tokens, x_row, weight_row, second, gate_batch, gate_row, residual_batch, residual_row,
    activation: tl.constexpr, glu: tl.constexpr, has_bias: tl.constexpr, has_gate: tl.constexpr,
    has_residual: tl.constexpr, described: tl.constexpr, even: tl.constexpr, precision: tl.constexpr,
    group: tl.constexpr, block_rows: tl.constexpr, block_columns: tl.constexpr, block_inputs: tl.constexpr,
):  # fmt: skip
    """residual + gate act(x W^T + bias), or a act(b) of the halves a, b of x W^T + bias in the place of act().

    x: (rows, inputs), weight: (columns, inputs), twice the columns with glu; the last strides are 1. They are pointers,
    or if `described` tensor descriptors, with 0 beyond the edges. second: how far the second half of the weight is from
    the first. gate, residual: of `tokens` rows a sample. even: block_inputs divides `inputs`. precision: of products of
    float32.
    """
    down, across = tl.cdiv(rows, block_rows), tl.cdiv(columns, block_columns)
    tile_row, tile_column = tile_of(tl.program_id(0), down, across, group)
    first_row, first_column = tile_row * block_rows, tile_column * block_columns
    row, column = first_row + tl.arange(0, block_rows), first_column + tl.arange(0, block_columns)
    k = tl.arange(0, block_inputs)
    total = tl.zeros((block_rows, block_columns), tl.float32)
    total_2 = total
    if not described:  # rows beyond the edges repeat the first, and are not stored
        x_at = x + tl.where(row < rows, row, 0).to(tl.int64)[:, None] * x_row + k[None, :]
        weight_at = weight + tl.where(column < columns, column, 0).to(tl.int64)[None, :] * weight_row + k[:, None]
    for start in range(0, inputs, block_inputs):
        if described:
            a = x.load([first_row, start])
            b = weight.load([first_column, start]).T
        elif even:
            a = tl.load(x_at)
            b = tl.load(weight_at)
        else:
            a = tl.load(x_at, mask=(k < inputs - start)[None, :], other=0.0)
            b = tl.load(weight_at, mask=(k < inputs - start)[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision=precision)
        if glu:
            if described:
                b_2 = weight.load([columns + first_column, start]).T
            elif even:
                b_2 = tl.load(weight_at + second)
            else:
                b_2 = tl.load(weight_at + second, mask=(k < inputs - start)[:, None], other=0.0)
            total_2 = tl.dot(a, b_2, total_2, input_precision=precision)
        if not described:
            x_at += block_inputs
            weight_at += block_inputs
    row, column = row[:, None], column[None, :]
    if has_bias:
        total += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)
        if glu:
            total_2 += tl.load(bias + columns + column, mask=column < columns, other=0.0).to(tl.float32)
    y = total * activate(total_2, activation) if glu else activate(total, activation)
    inside = (row < rows) & (column < columns)
    y = follow(
        y, gate, residual, row, column, inside, tokens, gate_batch, gate_row, residual_batch, residual_row,
        has_gate, has_residual,
    )  # fmt: skip
    tl.store(out + row.to(tl.int64) * columns + column, y.to(out.dtype.element_ty), mask=inside)
