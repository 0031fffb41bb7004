"""What the kernels of attention share: tiles of rows, masks, sums of products."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
MASK_UNIT = tl.constexpr(16)  # strides of masks are multiples of it

# Not specialized: a kernel compiled for one resolution serves all.
SIZES = ["batch", "heads", "queries", "keys", "split_blocks", "splits", "mask_batch", "mask_head", "mask_row"] + [
    f"{name}_{stride}"
    for name in ("q", "k", "v", "out", "grad", "dq", "dk", "dv")
    for stride in ("split", "batch", "head", "row")
]


@triton.jit
def load_rows(
    base, rows, stride, limit,
    first: tl.constexpr, width: tl.constexpr, dim: tl.constexpr, whole: tl.constexpr,
):  # fmt: skip
    """Columns [first, first + width) of some rows, 0 outside of [0, limit) x [0, dim); `whole`: no row is outside."""
    columns = first + tl.arange(0, width)
    place = base + rows[:, None] * stride + columns[None, :]
    inside = columns[None, :] < dim
    if whole:
        tile = tl.load(place) if first + width <= dim else tl.load(place, mask=inside, other=0.0)
    elif first + width <= dim:
        tile = tl.load(place, mask=rows[:, None] < limit, other=0.0)
    else:
        tile = tl.load(place, mask=(rows[:, None] < limit) & inside, other=0.0)
    return tile


@triton.jit
def store_rows(base, rows, stride, limit, tile, first: tl.constexpr, width: tl.constexpr, dim: tl.constexpr):
    """The reverse of load_rows."""
    columns = first + tl.arange(0, width)
    inside = rows[:, None] < limit
    if first + width > dim:
        inside = inside & (columns[None, :] < dim)
    tl.store(base + rows[:, None] * stride + columns[None, :], tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def load_tile(
    base, rows, stride, limit,
    width0: tl.constexpr, width1: tl.constexpr, dim: tl.constexpr, whole: tl.constexpr,
):  # fmt: skip
    """Some rows in two chunks of columns, see load_rows; the second repeats the first where width1 is 0."""
    x0 = load_rows(base, rows, stride, limit, 0, width0, dim, whole)
    x1 = load_rows(base, rows, stride, limit, width0, width1, dim, whole) if width1 > 0 else x0
    return x0, x1


@triton.jit
def zero_tile(rows: tl.constexpr, width0: tl.constexpr, width1: tl.constexpr):
    """Sums in float32, in two chunks of columns."""
    return tl.zeros((rows, width0), tl.float32), tl.zeros((rows, width1 if width1 > 0 else width0), tl.float32)


@triton.jit
def store_tile(
    base, rows, stride, limit, x0, x1, width0: tl.constexpr, width1: tl.constexpr, dim: tl.constexpr
):  # fmt: skip
    """The reverse of load_tile."""
    store_rows(base, rows, stride, limit, x0, 0, width0, dim)
    if width1 > 0:
        store_rows(base, rows, stride, limit, x1, width0, width1, dim)


@triton.jit
def multiply(a0, a1, b0, b1, width1: tl.constexpr, precision: tl.constexpr):
    """a b^T of tiles in two chunks."""
    s = tl.dot(a0, tl.trans(b0), input_precision=precision)
    return tl.dot(a1, tl.trans(b1), s, input_precision=precision) if width1 > 0 else s


@triton.jit
def multiply_rows(
    a0, a1, base, rows, stride, limit,
    width0: tl.constexpr, width1: tl.constexpr, dim: tl.constexpr, whole: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """a b^T, b0 and b1, which are loaded. One after the other: two chunks at once need more memory than there is."""
    b0 = load_rows(base, rows, stride, limit, 0, width0, dim, whole)
    s, b1 = tl.dot(a0, tl.trans(b0), input_precision=precision), b0
    if width1 > 0:
        b1 = load_rows(base, rows, stride, limit, width0, width1, dim, whole)
        s = tl.dot(a1, tl.trans(b1), s, input_precision=precision)
    return s, b0, b1


@triton.jit
def add_mask(s, mask, m, n, row, rows, boolean: tl.constexpr):
    """Scores in units of log 2 with a mask: -inf where a boolean one is False.

    mask: address of the tile's first element; m, n: offsets in it that broadcast to s, of rows `row` units apart; rows:
    how many are left. All columns can be read, and 16 bytes at a time: single loads need more registers than there are.
    """
    value = tl.load(mask + (m * (row * MASK_UNIT) + n), mask=m < rows, other=0)
    return tl.where(value != 0, s, float("-inf")) if boolean else s + value.to(tl.float32) * LOG2_E


@triton.jit
def load_log_sum_exp(lse, m, queries):
    """In units of log 2; where there is no key (-inf), and outside, infinity: every probability is 0."""
    value = tl.load(lse + m, mask=m < queries, other=float("inf"))
    return tl.where(value == float("-inf"), float("inf"), value * LOG2_E)


@triton.jit
def accumulate(sum0, sum1, a, b0, b1, width1: tl.constexpr, precision: tl.constexpr):
    """sums + a b, of tiles in two chunks."""
    a = a.to(b0.dtype)
    return add_product(sum0, a, b0, precision), add_product(sum1, a, b1, precision) if width1 > 0 else sum1


@triton.jit
def add_product(sums, a, b, precision: tl.constexpr):
    """sums + a b. In float32 the product is summed for itself first: one chain over thousands of terms rounds more."""
    return sums + tl.dot(a, b, input_precision=precision) if b.dtype == tl.float32 else tl.dot(a, b, sums)
