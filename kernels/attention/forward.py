"""attention in Triton, forward. Dao 2023, FlashAttention-2, Algorithm 1; split over keys as in Flash-Decoding.

A program instance has `block_m` queries of one head and goes over the keys in blocks of `block_n`, with running maximum
and sum. The head dimension D is cut into two chunks of power-of-two widths (see `attention_tiles.widths`), so that 40,
72, 80, 96 and 160 multiply 48, 80, 80, 96 and 160 columns instead of the 64, 128, 128, 128 and 256 of a padded tile. No
GPU has run it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.runtime.device import properties

from ..launching import Launch
from .blocks import (
    LN_2,
    LOG2_E,
    MASK_UNIT,
    SIZES,
    add_mask,
    add_product,
    load_log_sum_exp,
    load_rows,
    load_tile,
    multiply_rows,
    store_rows,
    store_tile,
    zero_tile,
)
from .launch import PreparedMask, contiguous_rows, head_shape, strides, tile_for, unit_of
from .tiles import MAPS, NARROW, Tile, kind_of, splits_for, unfit

COMBINE_ROWS = 16


@triton.jit(do_not_specialize=SIZES)
def attention_forward_kernel(
    q, k, v, mask, out, lse,
    batch, heads, queries, keys, split_blocks, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_split, out_batch, out_head, out_row,
    mask_batch, mask_head, mask_row,
    dim: tl.constexpr, width0: tl.constexpr, width1: tl.constexpr, unit: tl.constexpr,
    masking: tl.constexpr, whole_keys: tl.constexpr, positive: tl.constexpr, precision: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """out = softmax(scale q k^T + mask) v for split program_id(1) of the keys, and its log-sum-exp (base e).

    Strides of q, k, v and out are in units of `unit` numbers. split_blocks: blocks of keys of a split.
    masking: "none", "boolean" or "additive"; a mask's strides are in units of MASK_UNIT, and its rows can be read up to
    a multiple of block_n. whole_keys: keys is a multiple of block_n. positive: scale > 0.
    """
    blocks = tl.cdiv(queries, block_m)
    tile = tl.program_id(0)
    head = tile // blocks
    b, h = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    i, j = tl.arange(0, block_m), tl.arange(0, block_n)
    first = tile % blocks * block_m
    m = first + i
    split = tl.program_id(1)
    begin = split * split_blocks * block_n
    end = tl.minimum(begin + split_blocks * block_n, keys)
    q += (b * q_batch + h * q_head) * unit
    k += (b * k_batch + h * k_head) * unit
    v += (b * v_batch + h * v_head) * unit
    mask += (b * mask_batch + h * mask_head + first.to(tl.int64) * mask_row) * MASK_UNIT + begin
    q0, q1 = load_tile(q, m, q_row * unit, queries, width0, width1, dim, False)
    sum0, sum1 = zero_tile(block_m, width0, width1)
    top = tl.full((block_m,), float("-inf"), tl.float32)  # running maximum of scores in units of log 2
    total = tl.zeros((block_m,), tl.float32)
    log2_scale = scale * LOG2_E
    for start in range(begin, end, block_n):
        n = start + j
        s, _, _ = multiply_rows(q0, q1, k, n, k_row * unit, keys, width0, width1, dim, whole_keys, precision)
        if masking != "none":
            s = add_mask(s * log2_scale, mask, i[:, None], j[None, :], mask_row, queries - first, masking == "boolean")
            mask += block_n
        elif not positive:
            s = s * log2_scale
        if not whole_keys:
            s = tl.where(n[None, :] < keys, s, float("-inf"))
        if masking == "none" and positive:
            # The product with the scale is fused with the subtraction of the maximum.
            highest = tl.maximum(top, tl.max(s, axis=1) * log2_scale)
            p = tl.exp2(s * log2_scale - highest[:, None])
            rescale = tl.exp2(top - highest)
        else:
            highest = tl.maximum(top, tl.max(s, axis=1))
            against = tl.where(highest == float("-inf"), 0.0, highest)  # a row without a key yet
            p = tl.exp2(s - against[:, None])
            rescale = tl.exp2(top - against)
        total = total * rescale + tl.sum(p, axis=1)
        top = highest
        v0 = load_rows(v, n, v_row * unit, keys, 0, width0, dim, whole_keys)
        sum0 = add_product(sum0 * rescale[:, None], p.to(v0.dtype), v0, precision)
        if width1 > 0:
            v1 = load_rows(v, n, v_row * unit, keys, width0, width1, dim, whole_keys)
            sum1 = add_product(sum1 * rescale[:, None], p.to(v1.dtype), v1, precision)
    inverse = 1.0 / tl.where(total > 0, total, 1.0)  # a row without keys gives 0, as torch's does
    out += split.to(tl.int64) * out_split + (b * out_batch + h * out_head) * unit
    y0, y1 = sum0 * inverse[:, None], sum1 * inverse[:, None]
    store_tile(out, m, out_row * unit, queries, y0, y1, width0, width1, dim)
    lse += ((split.to(tl.int64) * batch + b) * heads + h) * queries
    tl.store(lse + m, (top + tl.log2(total)) * LN_2, mask=m < queries)


@triton.jit(do_not_specialize=SIZES)
def attention_combine_kernel(
    parts, part_lse, out, lse,
    batch, heads, queries, splits, out_batch, out_head, out_row,
    dim: tl.constexpr, width: tl.constexpr, unit: tl.constexpr, block_m: tl.constexpr,
):  # fmt: skip
    """The softmax over all keys from those over parts: parts (splits, batch, heads, queries, dim), in float32."""
    blocks = tl.cdiv(queries, block_m)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    b, h = head // heads, head % heads
    m = tl.program_id(0) % blocks * block_m + tl.arange(0, block_m)
    rows = batch * heads * queries  # of a part
    sums = tl.zeros((block_m, width), tl.float32)
    top = tl.full((block_m,), float("-inf"), tl.float32)
    total = tl.zeros((block_m,), tl.float32)
    parts += head * queries * dim
    part_lse += head * queries
    for _ in range(splits):
        x = tl.load(part_lse + m, mask=m < queries, other=0.0) * LOG2_E
        highest = tl.maximum(top, x)
        against = tl.where(highest == float("-inf"), 0.0, highest)
        rescale, weight = tl.exp2(top - against), tl.exp2(x - against)
        sums = sums * rescale[:, None] + load_rows(parts, m, dim, queries, 0, width, dim, False) * weight[:, None]
        total = total * rescale + weight
        top = highest
        parts += rows.to(tl.int64) * dim
        part_lse += rows
    y = sums / tl.where(total > 0, total, 1.0)[:, None]
    store_rows(out + (b * out_batch + h * out_head) * unit, m, out_row * unit, queries, y, 0, width, dim)
    tl.store(lse + head * queries + m, (top + tl.log2(total)) * LN_2, mask=m < queries)


@triton.jit(do_not_specialize=SIZES)
def attention_maps_kernel(
    q, k, mask, lse, maps,
    heads, queries, keys, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_row, mask_batch, mask_head, mask_row,
    dim: tl.constexpr, width0: tl.constexpr, width1: tl.constexpr, unit: tl.constexpr,
    masking: tl.constexpr, precision: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """The probabilities themselves, (batch, heads, queries, keys), from the log-sum-exp; a program has one tile."""
    blocks = tl.cdiv(queries, block_m)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    b, h = head // heads, head % heads
    i, j = tl.arange(0, block_m), tl.arange(0, block_n)
    first, start = tl.program_id(0) % blocks * block_m, tl.program_id(1) * block_n
    m, n = first + i, start + j
    q += (b * q_batch + h * q_head) * unit
    k += (b * k_batch + h * k_head) * unit
    q0, q1 = load_tile(q, m, q_row * unit, queries, width0, width1, dim, False)
    s, _, _ = multiply_rows(q0, q1, k, n, k_row * unit, keys, width0, width1, dim, False, precision)
    s = s * (scale * LOG2_E)
    if masking != "none":
        mask += (b * mask_batch + h * mask_head + first.to(tl.int64) * mask_row) * MASK_UNIT + start
        s = add_mask(s, mask, i[:, None], j[None, :], mask_row, queries - first, masking == "boolean")
    p = tl.exp2(s - load_log_sum_exp(lse + head * queries, m, queries)[:, None])
    place = maps + (head * queries + first) * keys + start + (i[:, None] * keys + j[None, :])
    tl.store(place, p.to(maps.dtype.element_ty), mask=(m[:, None] < queries) & (n[None, :] < keys))


class Forward:
    """The launches for tensors like these. Arguments as of attention_forward."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, scale: float | None = None,
        precision: str = "ieee", tile: Tile | None = None, splits: int | None = None,
    ) -> None:  # fmt: skip
        batch, heads, queries, dim = q.shape
        keys = k.shape[2]
        given, (q, k, v) = (q, k, v), (contiguous_rows(q), contiguous_rows(k), contiguous_rows(v))
        self._as_it_is = all(one is other for one, other in zip(given, (q, k, v)))
        self._dtype, self._device = q.dtype, q.device
        self._shape, self._strides = q.shape, (queries * heads * dim, dim, heads * dim, 1)  # a view of (B, Sq, H, D)
        self._lse = (batch, heads, queries), (heads * queries, queries, 1)
        self._launch: Launch | None = None
        self._combine: Launch | None = None
        if not batch * heads * queries:
            return
        tile = tile or tile_for(
            "forward", q, k, mask, precision,
            lambda tile: attention_forward(q, k, v, mask=mask, scale=scale, precision=precision, tile=tile),
        )  # fmt: skip
        reason = unfit(tile, "forward", properties(q.device).architecture, kind_of(q.dtype, precision), dim)
        expect(reason is None, f"the tile cannot be taken: {reason}")
        scale = dim**-0.5 if scale is None else float(scale)
        programs, blocks = triton.cdiv(queries, tile.block_m) * batch * heads, triton.cdiv(keys, tile.block_n)
        self._splits = splits = splits or splits_for(programs, blocks, properties(q.device).multiprocessors)
        out = torch.empty_strided(self._shape, self._strides, dtype=q.dtype, device="meta")
        unit = unit_of(q, k, v, out)
        to = out if splits == 1 else torch.empty(q.shape, dtype=torch.float32, device="meta")
        self._mask = PreparedMask(mask, q, k)
        self._launch = Launch(
            attention_forward_kernel, (programs, splits), **self._mask.arguments, batch=batch, heads=heads,
            queries=queries, keys=keys, split_blocks=triton.cdiv(blocks, splits), scale=scale,
            **strides(unit, q=q, k=k, v=v, out=to), out_split=out.numel(), **head_shape(dim, unit),
            whole_keys=keys % tile.block_n == 0, positive=scale > 0, precision=precision, **tile.blocks, **tile.options,
        )  # fmt: skip
        if splits > 1:
            self._combine = Launch(
                attention_combine_kernel, (triton.cdiv(queries, COMBINE_ROWS) * batch * heads,), batch=batch,
                heads=heads, queries=queries, splits=splits, **strides(unit, out=out), dim=dim,
                width=triton.next_power_of_2(dim), unit=unit, block_m=COMBINE_ROWS, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The output and the log-sum-exp."""
        device = self._device
        out = torch.empty_strided(self._shape, self._strides, dtype=self._dtype, device=device)
        lse = torch.empty_strided(*self._lse, dtype=torch.float32, device=device)
        if self._launch is None:
            return out, lse
        if not self._as_it_is:
            q, k, v = contiguous_rows(q), contiguous_rows(k), contiguous_rows(v)
        read = q if mask is None else self._mask(mask, q, k)
        if self._combine is None:
            self._launch(q, k, v, read, out, lse)
            return out, lse
        parts = torch.empty((self._splits, *q.shape), dtype=torch.float32, device=device)
        part_lse = torch.empty((self._splits, *lse.shape), dtype=torch.float32, device=device)
        self._launch(q, k, v, read, parts, part_lse)
        self._combine(parts, part_lse, out, lse)
        return out, lse


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, scale: float | None = None,
    precision: str = "ieee", tile: Tile | None = None, splits: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """softmax(scale q k^T + mask) v and the log-sum-exp of the scores.

    q: (B, H, Sq, D); k, v: (B, H, Sk, D); D <= 512; float32, bfloat16 or float16, any strides (read in place if rows
    are contiguous). mask: broadcastable to (B, H, Sq, Sk); bool (True: takes part) or added. scale: D ** -0.5 by
    default. A query without keys gives 0, as torch's scaled_dot_product_attention does. precision: "ieee", or "tf32"
    for float32 products on tensor cores. tile, splits (of the keys): chosen by shape and device by default.
    Returns (B, H, Sq, D) in q's dtype, a view of (B, Sq, H, D) storage, and (B, H, Sq) in float32, -inf where there is
    no key. Raises ValueError for a head dimension above 512, a tile that `tiles.unfit` names, and a head that spans
    more than 2^31 numbers.
    """
    forward = Forward(q, k, v, mask=mask, scale=scale, precision=precision, tile=tile, splits=splits)
    return forward(q, k, v, mask)


class Maps:
    """The launch of attention_maps for tensors like these. Arguments as of it."""

    def __init__(
        self, q: Tensor, k: Tensor, *, mask: Tensor | None = None, scale: float | None = None,
        precision: str = "ieee", tile: Tile | None = None,
    ) -> None:  # fmt: skip
        batch, heads, queries, dim = q.shape
        keys = k.shape[2]
        expect(dim <= NARROW, f"the maps are made of head dimensions up to {NARROW}, not {dim}")
        given, (q, k) = (q, k), (contiguous_rows(q), contiguous_rows(k))
        self._as_it_is = all(one is other for one, other in zip(given, (q, k)))
        self._shape, self._dtype, self._device = (batch, heads, queries, keys), q.dtype, q.device
        self._launch: Launch | None = None
        if not batch * heads * queries * keys:
            return
        tile = tile or MAPS[kind_of(q.dtype, precision)]
        unit = unit_of(q, k)
        self._mask = PreparedMask(mask, q, k)
        self._launch = Launch(
            attention_maps_kernel,
            (triton.cdiv(queries, tile.block_m) * batch * heads, triton.cdiv(keys, tile.block_n)),
            **self._mask.arguments, heads=heads, queries=queries, keys=keys,
            scale=dim**-0.5 if scale is None else float(scale), **strides(unit, q=q, k=k), **head_shape(dim, unit),
            precision=precision, **tile.blocks, **tile.options,
        )  # fmt: skip

    def __call__(self, q: Tensor, k: Tensor, lse: Tensor, mask: Tensor | None) -> Tensor:
        """The probabilities."""
        maps = torch.empty(self._shape, dtype=self._dtype, device=self._device)
        if self._launch is not None:
            if not self._as_it_is:
                q, k = contiguous_rows(q), contiguous_rows(k)
            self._launch(q, k, q if mask is None else self._mask(mask, q, k), lse, maps)
        return maps


def attention_maps(
    q: Tensor, k: Tensor, lse: Tensor, *, mask: Tensor | None = None, scale: float | None = None,
    precision: str = "ieee", tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """The probabilities (B, H, Sq, Sk), in q's dtype, of what attention_forward returned `lse` for; D <= 256."""
    return Maps(q, k, mask=mask, scale=scale, precision=precision, tile=tile)(q, k, lse, mask)
