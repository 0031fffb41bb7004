"""Gradients of attention in Triton. Dao 2023, FlashAttention-2, Algorithm 2, as two kernels without atomic additions.

One has a block of keys and goes over the queries, for dk and dv; the other has a block of queries and goes over the
keys, for dq. Both make the probabilities again from the saved log-sum-exp. No GPU has run them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.attention import LOG2_E, accumulate, add_mask, load_log_sum_exp, load_rows, store_rows
from fastdiff.kernels.attention_launch import MASK_UNIT, contiguous_rows, jit, prepare_mask, strides_of, unit_of
from fastdiff.kernels.attention_tiles import (
    Tile,
    choose,
    kind_of,
    most_splits_of_dkv,
    samples_at_once,
    splits_for,
    widths,
)
from fastdiff.kernels.attention_tuning import tile_for
from fastdiff.runtime.device import architecture, processors, second_cache

DELTA_ROWS = 16


@jit
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
    x = load_rows(out, m, out_row * unit, queries, 0, width0, dim, False).to(tl.float32)
    total = tl.sum(x * load_rows(grad, m, grad_row * unit, queries, 0, width0, dim, False).to(tl.float32), axis=1)
    if width1 > 0:
        x = load_rows(out, m, out_row * unit, queries, width0, width1, dim, False).to(tl.float32)
        y = load_rows(grad, m, grad_row * unit, queries, width0, width1, dim, False).to(tl.float32)
        total += tl.sum(x * y, axis=1)
    tl.store(delta + head.to(tl.int64) * queries + m, total, mask=m < queries)


@jit
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
    k0 = load_rows(k, n, k_row * unit, keys, 0, width0, dim, False)
    if width1 > 0:
        k1 = load_rows(k, n, k_row * unit, keys, width0, width1, dim, False)
    if want_dk:
        v0 = load_rows(v, n, v_row * unit, keys, 0, width0, dim, False)
        dk0 = tl.zeros((block_n, width0), tl.float32)
        if width1 > 0:
            v1 = load_rows(v, n, v_row * unit, keys, width0, width1, dim, False)
            dk1 = tl.zeros((block_n, width1), tl.float32)
    if want_dv:
        dv0 = tl.zeros((block_n, width0), tl.float32)
        if width1 > 0:
            dv1 = tl.zeros((block_n, width1), tl.float32)
    log2_scale = scale * LOG2_E
    for start in range(begin, end, block_m):
        m = start + i
        q0 = load_rows(q, m, q_row * unit, queries, 0, width0, dim, whole_queries)
        s = tl.dot(k0, tl.trans(q0), input_precision=precision)
        if width1 > 0:
            q1 = load_rows(q, m, q_row * unit, queries, width0, width1, dim, whole_queries)
            s = tl.dot(k1, tl.trans(q1), s, input_precision=precision)
        s = s * log2_scale
        if masking != "none":
            s = add_mask(s, mask, i[None, :], j[:, None], mask_row, queries - start, masking == "boolean")
            mask += block_m * mask_row * MASK_UNIT
        p = tl.exp2(s - load_log_sum_exp(lse, m, queries)[None, :])
        g0 = load_rows(grad, m, grad_row * unit, queries, 0, width0, dim, whole_queries)
        if width1 > 0:
            g1 = load_rows(grad, m, grad_row * unit, queries, width0, width1, dim, whole_queries)
        if want_dv:
            dv0 = accumulate(dv0, p.to(g0.dtype), g0, precision)
            if width1 > 0:
                dv1 = accumulate(dv1, p.to(g1.dtype), g1, precision)
        if want_dk:
            dp = tl.dot(v0, tl.trans(g0), input_precision=precision)
            if width1 > 0:
                dp = tl.dot(v1, tl.trans(g1), dp, input_precision=precision)
            ds = p * (dp - tl.load(delta + m, mask=m < queries, other=0.0)[None, :])
            dk0 = accumulate(dk0, ds.to(q0.dtype), q0, precision)
            if width1 > 0:
                dk1 = accumulate(dk1, ds.to(q1.dtype), q1, precision)
    if want_dk:
        dk += split.to(tl.int64) * dk_split + (b * dk_batch + h * dk_head) * unit
        store_rows(dk, n, dk_row * unit, keys, dk0 * scale, 0, width0, dim)
        if width1 > 0:
            store_rows(dk, n, dk_row * unit, keys, dk1 * scale, width0, width1, dim)
    if want_dv:
        dv += split.to(tl.int64) * dv_split + (b * dv_batch + h * dv_head) * unit
        store_rows(dv, n, dv_row * unit, keys, dv0, 0, width0, dim)
        if width1 > 0:
            store_rows(dv, n, dv_row * unit, keys, dv1, width0, width1, dim)


@jit
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
    q0 = load_rows(q, m, q_row * unit, queries, 0, width0, dim, False)
    g0 = load_rows(grad, m, grad_row * unit, queries, 0, width0, dim, False)
    dq0 = tl.zeros((block_m, width0), tl.float32)
    if width1 > 0:
        q1 = load_rows(q, m, q_row * unit, queries, width0, width1, dim, False)
        g1 = load_rows(grad, m, grad_row * unit, queries, width0, width1, dim, False)
        dq1 = tl.zeros((block_m, width1), tl.float32)
    log2_scale = scale * LOG2_E
    for start in range(0, keys, block_n):
        n = start + j
        k0 = load_rows(k, n, k_row * unit, keys, 0, width0, dim, whole_keys)
        v0 = load_rows(v, n, v_row * unit, keys, 0, width0, dim, whole_keys)
        s = tl.dot(q0, tl.trans(k0), input_precision=precision)
        dp = tl.dot(g0, tl.trans(v0), input_precision=precision)
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
        dq0 = accumulate(dq0, ds.to(k0.dtype), k0, precision)
        if width1 > 0:
            dq1 = accumulate(dq1, ds.to(k1.dtype), k1, precision)
    dq += (b * dq_batch + h * dq_head) * unit
    store_rows(dq, m, dq_row * unit, queries, dq0 * scale, 0, width0, dim)
    if width1 > 0:
        store_rows(dq, m, dq_row * unit, queries, dq1 * scale, width0, width1, dim)


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    precision: str = "ieee",
    tile_dq: Tile | None = None,
    tile_dkv: Tile | None = None,
    splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv from the gradient of `out`; out, lse: what attention_forward returned for the other arguments.

    splits: of the queries in the sums for dk and dv; chosen by default, more than one where few keys (a prompt's) would
    leave a device idle. Sums of splits are added in order: results do not change from run to run. No gradient of the
    mask is computed. Shapes, dtypes and errors as of attention_forward.
    """
    batch, heads, queries, dim = q.shape
    q, k, v, out, grad = (contiguous_rows(t) for t in (q, k, v, out, grad))
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    if not q.numel() or not k.numel():
        return tuple(t.zero_() for t in gradients)
    cache = second_cache(q.device)
    at_once = samples_at_once(batch, heads, queries, k.shape[2], dim, q.element_size(), cache)

    def run(tile_dq: Tile, tile_dkv: Tile) -> object:
        given: dict[str, Any] = {"mask": mask, "scale": scale, "precision": precision, "splits": splits}
        return attention_backward(grad, q, k, v, out, lse, tile_dq=tile_dq, tile_dkv=tile_dkv, **given)

    # Of the two, each is timed beside one tile of the other.
    kind = kind_of(q.dtype, precision)
    other = tile_dkv or choose("dkv", architecture(q.device), kind, dim, masked=mask is not None)
    dq_tile = tile_dq or tile_for("dq", q, k, mask, precision, lambda tile: run(tile, other))
    dkv_tile = tile_dkv or tile_for("dkv", q, k, mask, precision, lambda tile: run(dq_tile, tile))
    for first in range(0, batch, at_once):
        some = slice(first, first + at_once)
        with_samples = mask is not None and mask.ndim == 4 and mask.shape[0] > 1
        _backward(
            [t[some] for t in gradients], *(t[some] for t in (grad, q, k, v, out, lse)),
            mask[some] if with_samples else mask, dim**-0.5 if scale is None else scale, precision,
            dq_tile, dkv_tile, splits,
        )  # fmt: skip
    return gradients


def _backward(
    gradients: Sequence[Tensor],
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    scale: float,
    precision: str,
    tile_dq: Tile,
    tile_dkv: Tile,
    splits: int | None,
) -> None:
    """Into `gradients`."""
    dq, dk, dv = gradients
    batch, heads, queries, dim = q.shape
    keys = k.shape[2]
    masking, mask, mask_strides = prepare_mask(mask, q, k)
    unit = unit_of(q, k, v, out, grad, dq, dk, dv)
    shape = (dim, *widths(dim), unit)
    delta = torch.empty_like(lse)
    attention_delta_kernel[(triton.cdiv(queries, DELTA_ROWS) * batch * heads,)](
        out, grad, delta, heads, queries, *strides_of(out, unit), *strides_of(grad, unit),
        *shape, DELTA_ROWS, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    tile = tile_dq
    inputs = [n for t in (q, k, v, grad) for n in strides_of(t, unit)]
    attention_backward_dq_kernel[(triton.cdiv(queries, tile.block_m) * batch * heads,)](
        q, k, v, mask, grad, lse, delta, dq,
        heads, queries, keys, scale, *inputs, *strides_of(dq, unit), *mask_strides,
        *shape, masking, keys % tile.block_n == 0, precision, tile.block_m, tile.block_n, **tile.options,
    )  # fmt: skip
    tile = tile_dkv
    programs, blocks = triton.cdiv(keys, tile.block_n) * batch * heads, triton.cdiv(queries, tile.block_m)
    most = most_splits_of_dkv(queries, keys, q.element_size())
    splits = splits or splits_for(programs, blocks, processors(q.device), most)
    to = [dk, dv]
    if splits > 1:
        to = [torch.empty((splits, *k.shape), dtype=torch.float32, device=k.device) for _ in to]
    outputs = [n for t in to for n in (k.numel(), *strides_of(t if splits == 1 else t[0], unit))]
    for want_dk, want_dv in [(True, False), (False, True)] if tile.apart else [(True, True)]:
        attention_backward_dkv_kernel[(programs, splits)](
            q, k, v, mask, grad, lse, delta, *to,
            heads, queries, keys, triton.cdiv(blocks, splits), scale, *inputs, *outputs, *mask_strides,
            *shape, masking, queries % tile.block_m == 0, precision, want_dk, want_dv, tile.block_m, tile.block_n,
            **tile.options,
        )  # fmt: skip
    if splits > 1:
        for result, parts in zip((dk, dv), to):
            result.copy_(parts.sum(0))
