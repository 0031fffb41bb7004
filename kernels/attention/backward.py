"""Gradients of attention in Triton. Dao 2023, FlashAttention-2, Algorithm 2, as two kernels without atomic additions.

One has a block of keys and goes over the queries, for dk and dv; the other has a block of queries and goes over the
keys, for dq. Both make the probabilities again from the saved log-sum-exp. No GPU has run them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.runtime.device import properties

from ..launching import launch
from .blocks import (
    LOG2_E,
    MASK_UNIT,
    SIZES,
    accumulate,
    add_mask,
    load_log_sum_exp,
    load_rows,
    load_tile,
    multiply,
    multiply_rows,
    store_tile,
    zero_tile,
)
from .launch import PreparedMask, contiguous_rows, head_shape, strides, tile_for, unit_of
from .tiles import NARROW, Tile, choose, kind_of, most_splits_of_dkv, samples_at_once, splits_for

DELTA_ROWS = 16


@triton.jit(do_not_specialize=SIZES)
def attention_delta_kernel(
    out, grad, delta,
    heads, queries,
    out_batch, out_head, out_row, grad_batch, grad_head, grad_row,
    dim: tl.constexpr, width0: tl.constexpr, width1: tl.constexpr, unit: tl.constexpr, block_m: tl.constexpr,
):  # fmt: skip
    """delta = sum of out * grad over the head dimension: what softmax's derivative subtracts (Eq. 4 of the paper)."""
    blocks = tl.cdiv(queries, block_m)
    head = tl.program_id(0) // blocks
    b, h = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    m = tl.program_id(0) % blocks * block_m + tl.arange(0, block_m)
    out += (b * out_batch + h * out_head) * unit
    grad += (b * grad_batch + h * grad_head) * unit
    out0, out1 = load_tile(out, m, out_row * unit, queries, width0, width1, dim, False)
    g0, g1 = load_tile(grad, m, grad_row * unit, queries, width0, width1, dim, False)
    total = tl.sum(out0.to(tl.float32) * g0.to(tl.float32), axis=1)
    if width1 > 0:
        total += tl.sum(out1.to(tl.float32) * g1.to(tl.float32), axis=1)
    tl.store(delta + head.to(tl.int64) * queries + m, total, mask=m < queries)


@triton.jit(do_not_specialize=SIZES)
def attention_backward_dkv_kernel(
    q, k, v, mask, grad, lse, delta, dk, dv,
    heads, queries, keys, split_blocks, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, grad_batch, grad_head, grad_row,
    dk_split, dk_batch, dk_head, dk_row, dv_split, dv_batch, dv_head, dv_row,
    mask_batch, mask_head, mask_row,
    dim: tl.constexpr, width0: tl.constexpr, width1: tl.constexpr, unit: tl.constexpr,
    masking: tl.constexpr, whole_queries: tl.constexpr, precision: tl.constexpr,
    want_dk: tl.constexpr, want_dv: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """dk and dv (those wanted) of a block of keys, from split program_id(1) of the queries.

    split_blocks: blocks of queries of a split. Others: see attention_forward_kernel. Tiles of scores are
    transposed, (block_n, block_m), so that they are the left operands of what follows.
    """
    blocks = tl.cdiv(keys, block_n)
    tile = tl.program_id(0)
    head = tile // blocks
    b, h = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    i, j = tl.arange(0, block_m), tl.arange(0, block_n)
    first = tile % blocks * block_n
    n = first + j
    split = tl.program_id(1)
    begin = split * split_blocks * block_m
    end = tl.minimum(begin + split_blocks * block_m, queries)
    q += (b * q_batch + h * q_head) * unit
    k += (b * k_batch + h * k_head) * unit
    v += (b * v_batch + h * v_head) * unit
    grad += (b * grad_batch + h * grad_head) * unit
    mask += (b * mask_batch + h * mask_head + begin.to(tl.int64) * mask_row) * MASK_UNIT + first
    lse += head.to(tl.int64) * queries
    delta += head.to(tl.int64) * queries
    k0, k1 = load_tile(k, n, k_row * unit, keys, width0, width1, dim, False)
    if want_dk:
        v0, v1 = load_tile(v, n, v_row * unit, keys, width0, width1, dim, False)
        dk0, dk1 = zero_tile(block_n, width0, width1)
    if want_dv:
        dv0, dv1 = zero_tile(block_n, width0, width1)
    log2_scale = scale * LOG2_E
    for start in range(begin, end, block_m):
        m = start + i
        s, q0, q1 = multiply_rows(
            k0, k1, q, m, q_row * unit, queries, width0, width1, dim, whole_queries, precision
        )  # fmt: skip
        s = s * log2_scale
        if masking != "none":
            s = add_mask(s, mask, i[None, :], j[:, None], mask_row, queries - start, masking == "boolean")
            mask += block_m * mask_row * MASK_UNIT
        p = tl.exp2(s - load_log_sum_exp(lse, m, queries)[None, :])
        g0, g1 = load_tile(grad, m, grad_row * unit, queries, width0, width1, dim, whole_queries)
        if want_dv:
            dv0, dv1 = accumulate(dv0, dv1, p, g0, g1, width1, precision)
        if want_dk:
            dp = multiply(v0, v1, g0, g1, width1, precision)
            ds = p * (dp - tl.load(delta + m, mask=m < queries, other=0.0)[None, :])
            dk0, dk1 = accumulate(dk0, dk1, ds, q0, q1, width1, precision)
    if want_dk:
        dk += split.to(tl.int64) * dk_split + (b * dk_batch + h * dk_head) * unit
        store_tile(dk, n, dk_row * unit, keys, dk0 * scale, dk1 * scale, width0, width1, dim)
    if want_dv:
        dv += split.to(tl.int64) * dv_split + (b * dv_batch + h * dv_head) * unit
        store_tile(dv, n, dv_row * unit, keys, dv0, dv1, width0, width1, dim)


@triton.jit(do_not_specialize=SIZES)
def attention_backward_dq_kernel(
    q, k, v, mask, grad, lse, delta, dq,
    heads, queries, keys, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, grad_batch, grad_head, grad_row,
    dq_batch, dq_head, dq_row,
    mask_batch, mask_head, mask_row,
    dim: tl.constexpr, width0: tl.constexpr, width1: tl.constexpr, unit: tl.constexpr,
    masking: tl.constexpr, whole_keys: tl.constexpr, precision: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """dq of a block of queries. Arguments as those of attention_forward_kernel."""
    blocks = tl.cdiv(queries, block_m)
    tile = tl.program_id(0)
    head = tile // blocks
    b, h = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    i, j = tl.arange(0, block_m), tl.arange(0, block_n)
    first = tile % blocks * block_m
    m = first + i
    q += (b * q_batch + h * q_head) * unit
    k += (b * k_batch + h * k_head) * unit
    v += (b * v_batch + h * v_head) * unit
    grad += (b * grad_batch + h * grad_head) * unit
    mask += (b * mask_batch + h * mask_head + first.to(tl.int64) * mask_row) * MASK_UNIT
    log_sum_exp = load_log_sum_exp(lse + head.to(tl.int64) * queries, m, queries)
    subtrahend = tl.load(delta + head.to(tl.int64) * queries + m, mask=m < queries, other=0.0)
    q0, q1 = load_tile(q, m, q_row * unit, queries, width0, width1, dim, False)
    g0, g1 = load_tile(grad, m, grad_row * unit, queries, width0, width1, dim, False)
    dq0, dq1 = zero_tile(block_m, width0, width1)
    log2_scale = scale * LOG2_E
    for start in range(0, keys, block_n):
        n = start + j
        k0 = load_rows(k, n, k_row * unit, keys, 0, width0, dim, whole_keys)
        v0 = load_rows(v, n, v_row * unit, keys, 0, width0, dim, whole_keys)
        s = tl.dot(q0, tl.trans(k0), input_precision=precision)
        dp = tl.dot(g0, tl.trans(v0), input_precision=precision)
        k1 = k0
        if width1 > 0:
            k1 = load_rows(k, n, k_row * unit, keys, width0, width1, dim, whole_keys)
            v1 = load_rows(v, n, v_row * unit, keys, width0, width1, dim, whole_keys)
            s = tl.dot(q1, tl.trans(k1), s, input_precision=precision)
            dp = tl.dot(g1, tl.trans(v1), dp, input_precision=precision)
        s = s * log2_scale
        if masking != "none":
            s = add_mask(s, mask, i[:, None], j[None, :], mask_row, queries - first, masking == "boolean")
            mask += block_n
        p = tl.exp2(s - log_sum_exp[:, None])
        if not whole_keys:
            p = tl.where(n[None, :] < keys, p, 0.0)  # a probability of no key may be infinite, and 0 * inf is not 0
        ds = p * (dp - subtrahend[:, None])
        dq0, dq1 = accumulate(dq0, dq1, ds, k0, k1, width1, precision)
    dq += (b * dq_batch + h * dq_head) * unit
    store_tile(dq, m, dq_row * unit, queries, dq0 * scale, dq1 * scale, width0, width1, dim)


def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, mask: Tensor | None = None,
    scale: float | None = None, precision: str = "ieee", tile_dq: Tile | None = None, tile_dkv: Tile | None = None,
    splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv from the gradient of `out`; out, lse: what attention_forward returned for the other arguments.

    splits: of the queries in the sums for dk and dv; chosen by default, more than one where few keys (a prompt's) would
    leave a device idle. Sums of splits are added in order: results do not change from run to run. No gradient of the
    mask is computed. Shapes, dtypes and errors as of attention_forward, with D <= 256.
    """
    batch, heads, queries, dim = q.shape
    expect(dim <= NARROW, f"gradients are computed of head dimensions up to {NARROW}, not {dim}")
    grad, q, k, v, out = (contiguous_rows(t) for t in (grad, q, k, v, out))
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    if not q.numel() or not k.numel():
        return dq.zero_(), dk.zero_(), dv.zero_()
    device = properties(q.device)

    def run(tile_dq: Tile, tile_dkv: Tile) -> object:
        given: dict[str, Any] = {"mask": mask, "scale": scale, "precision": precision, "splits": splits}
        return attention_backward(grad, q, k, v, out, lse, tile_dq=tile_dq, tile_dkv=tile_dkv, **given)

    # Of the two, each is timed beside one tile of the other.
    other = tile_dkv or choose("dkv", device.architecture, kind_of(q.dtype, precision), dim, masked=mask is not None)
    dq_tile = tile_dq or tile_for("dq", q, k, mask, precision, lambda tile: run(tile, other))
    dkv_tile = tile_dkv or tile_for("dkv", q, k, mask, precision, lambda tile: run(dq_tile, tile))
    at_once = samples_at_once(batch, heads, queries, k.shape[2], dim, q.element_size(), device.l2_bytes)
    for first in range(0, batch, at_once):
        some = slice(first, first + at_once)
        masks = mask[some] if mask is not None and mask.ndim == 4 and mask.shape[0] > 1 else mask
        _backward(
            [t[some] for t in (dq, dk, dv)], [t[some] for t in (grad, q, k, v, out, lse)], masks,
            dim**-0.5 if scale is None else scale, precision, dq_tile, dkv_tile, splits,
        )  # fmt: skip
    return dq, dk, dv


def _backward(
    gradients: list[Tensor], inputs: list[Tensor], mask: Tensor | None, scale: float, precision: str, tile_dq: Tile,
    tile_dkv: Tile, splits: int | None,
) -> None:  # fmt: skip
    """Into the gradients dq, dk and dv. inputs: grad, q, k, v, out, lse."""
    (dq, dk, dv), (grad, q, k, v, out, lse) = gradients, inputs
    batch, heads, queries, dim = q.shape
    keys = k.shape[2]
    unit = unit_of(q, k, v, out, grad, dq, dk, dv)
    shape = head_shape(dim, unit)
    delta = torch.empty_like(lse)
    launch(
        attention_delta_kernel, (triton.cdiv(queries, DELTA_ROWS) * batch * heads,), out=out, grad=grad, delta=delta,
        heads=heads, queries=queries, **strides(unit, out=out, grad=grad),
        **shape, block_m=DELTA_ROWS, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    masking = PreparedMask(mask, q, k)
    both = dict(
        q=q, k=k, v=v, grad=grad, lse=lse, delta=delta, heads=heads, queries=queries, keys=keys, scale=scale,
        mask=q if mask is None else masking(mask, q, k), **masking.arguments,
        **strides(unit, q=q, k=k, v=v, grad=grad), **shape, precision=precision,
    )  # fmt: skip
    launch(
        attention_backward_dq_kernel, (triton.cdiv(queries, tile_dq.block_m) * batch * heads,), **both, dq=dq,
        **strides(unit, dq=dq), whole_keys=keys % tile_dq.block_n == 0,
        **tile_dq.blocks, **tile_dq.options,
    )  # fmt: skip
    tile = tile_dkv
    programs, blocks = triton.cdiv(keys, tile.block_n) * batch * heads, triton.cdiv(queries, tile.block_m)
    most = most_splits_of_dkv(queries, keys, q.element_size())
    splits = splits or splits_for(programs, blocks, properties(q.device).multiprocessors, most)
    parts = [dk[None], dv[None]]
    if splits > 1:
        parts = [torch.empty((splits, *k.shape), dtype=torch.float32, device=k.device) for _ in parts]
    for want_dk, want_dv in [(True, False), (False, True)] if tile.apart else [(True, True)]:
        launch(
            attention_backward_dkv_kernel, (programs, splits), **both, dk=parts[0], dv=parts[1],
            **strides(unit, dk=parts[0][0], dv=parts[1][0]),
            dk_split=k.numel(), dv_split=k.numel(), split_blocks=triton.cdiv(blocks, splits),
            whole_queries=queries % tile.block_m == 0, want_dk=want_dk, want_dv=want_dv, **tile.blocks, **tile.options,
        )  # fmt: skip
    if splits > 1:
        dk.copy_(parts[0].sum(0))
        dv.copy_(parts[1].sum(0))
