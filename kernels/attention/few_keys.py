"""attention in Triton over few keys (a prompt's 77): a program keeps all keys and values of a head in shared memory.

The keys are cut into two chunks of power-of-two widths, as the head dimension is, so that 77 keys multiply 64 + 16
columns. There is no running maximum: every softmax is of all keys at once. A program walks over blocks of queries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.runtime.device import properties

from ..launching import Launch
from .blocks import LOG2_E, SIZES, accumulate, load_tile, multiply, store_tile
from .launch import contiguous_rows, head_shape, strides, unit_of
from .tiles import widths

MAX_KEYS = 128
RESIDENT = 4  # programs that a multiprocessor runs at once: of 125 registers and 4 warps, on sm_90


class FewKeys(NamedTuple):
    """How it is cut up: block_m queries at a time. Measured on one H100 (PyTorch 2.11, Triton 3.6, in a CUDA graph), at
    (2, 8, 4096, 40) with 77 keys: 64 queries, 4 warps, 2 stages 8.5 us; 128, 8 warps 9.5; 64 with 1 stage 10.0."""

    block_m: int = 64
    num_warps: int = 4
    num_stages: int = 2

    def prepare(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, precision: str) -> FewKeysForward:
        """The launch for tensors like these."""
        return FewKeysForward(q, k, v, scale=scale, precision=precision, cut=self)


@triton.jit(do_not_specialize=[*SIZES, "parts"])
def attention_few_keys_kernel(
    q, k, v, out,
    heads, queries, keys, parts, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head, out_row,
    dim: tl.constexpr, width0: tl.constexpr, width1: tl.constexpr, unit: tl.constexpr,
    keys0: tl.constexpr, keys1: tl.constexpr, positive: tl.constexpr, precision: tl.constexpr,
    block_m: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """out = softmax(scale q k^T) v. A program has every `parts`-th block of queries of a head.

    Strides are in units of `unit` numbers. keys0 + keys1: the columns that hold all keys, the first keys0 of which are
    all filled where keys1 is not 0. positive: scale > 0.
    """
    head, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    b, h = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    q += (b * q_batch + h * q_head) * unit
    k += (b * k_batch + h * k_head) * unit
    v += (b * v_batch + h * v_head) * unit
    out += (b * out_batch + h * out_head) * unit
    n0 = tl.arange(0, keys0)
    n1 = keys0 + tl.arange(0, keys1 if keys1 > 0 else keys0)
    k00, k01 = load_tile(k, n0, k_row * unit, keys, width0, width1, dim, keys1 > 0)
    v00, v01 = load_tile(v, n0, v_row * unit, keys, width0, width1, dim, keys1 > 0)
    if keys1 > 0:
        k10, k11 = load_tile(k, n1, k_row * unit, keys, width0, width1, dim, False)
        v10, v11 = load_tile(v, n1, v_row * unit, keys, width0, width1, dim, False)
    log2_scale = scale * LOG2_E
    for block in tl.range(part, tl.cdiv(queries, block_m), parts, num_stages=stages):
        m = block * block_m + tl.arange(0, block_m)
        q0, q1 = load_tile(q, m, q_row * unit, queries, width0, width1, dim, False)
        s0 = multiply(q0, q1, k00, k01, width1, precision)
        if not positive:
            s0 = s0 * log2_scale
        if keys1 == 0:
            s0 = tl.where(n0[None, :] < keys, s0, float("-inf"))
        top = tl.max(s0, axis=1)
        if keys1 > 0:
            s1 = multiply(q0, q1, k10, k11, width1, precision)
            if not positive:
                s1 = s1 * log2_scale
            s1 = tl.where(n1[None, :] < keys, s1, float("-inf"))
            top = tl.maximum(top, tl.max(s1, axis=1))
        if positive:  # the product with the scale is fused with the subtraction of the maximum
            top = top * log2_scale
            p0 = tl.exp2(s0 * log2_scale - top[:, None])
        else:
            p0 = tl.exp2(s0 - top[:, None])
        total = tl.sum(p0, axis=1)
        sum0 = tl.zeros((block_m, width0), tl.float32)
        sum1 = tl.zeros((block_m, width1 if width1 > 0 else width0), tl.float32)
        sum0, sum1 = accumulate(sum0, sum1, p0, v00, v01, width1, precision)
        if keys1 > 0:
            p1 = tl.exp2(s1 * log2_scale - top[:, None]) if positive else tl.exp2(s1 - top[:, None])
            total += tl.sum(p1, axis=1)
            sum0, sum1 = accumulate(sum0, sum1, p1, v10, v11, width1, precision)
        inverse = (1.0 / total)[:, None]
        store_tile(out, m, out_row * unit, queries, sum0 * inverse, sum1 * inverse, width0, width1, dim)


def parts_of(blocks: int, heads: int, multiprocessors: int) -> int:
    """Programs that share the blocks of queries of a head: as many as run at once, with the same number of blocks."""
    at_once = max(1, RESIDENT * multiprocessors // heads)
    return triton.cdiv(blocks, triton.cdiv(blocks, min(blocks, at_once)))


def unfit(dim: int, keys: int) -> str | None:
    """Why the kernel cannot take such heads, or None: wider ones spill registers on sm_90 and gfx942."""
    if not 1 <= keys <= MAX_KEYS:
        return f"the kernel for few keys takes 1 to {MAX_KEYS}, not {keys}"
    most = 160 if keys <= 80 else 128
    if dim > most:
        return f"the kernel for few keys takes head dimensions up to {most} with {keys} keys, not {dim}"
    return None


class FewKeysForward:
    """The launch for tensors like these. Arguments as of attention_few_keys."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, precision: str = "ieee",
        cut: FewKeys | None = None,
    ) -> None:  # fmt: skip
        batch, heads, queries, dim = q.shape
        keys, cut = k.shape[2], cut or FewKeys()
        reason = unfit(dim, keys)
        expect(reason is None, str(reason))
        q, k, v = contiguous_rows(q), contiguous_rows(k), contiguous_rows(v)
        self._dtype, self._device = q.dtype, q.device
        self._shape, self._strides = q.shape, (queries * heads * dim, dim, heads * dim, 1)  # a view of (B, Sq, H, D)
        self._launch: Launch | None = None
        if not q.numel():
            return
        out = torch.empty_strided(self._shape, self._strides, dtype=q.dtype, device="meta")
        unit, scale = unit_of(q, k, v, out), dim**-0.5 if scale is None else float(scale)
        keys0, keys1 = widths(keys)
        parts = parts_of(triton.cdiv(queries, cut.block_m), batch * heads, properties(q.device).multiprocessors)
        self._launch = Launch(
            attention_few_keys_kernel, (batch * heads * parts,), heads=heads, queries=queries, keys=keys, parts=parts,
            scale=scale, **strides(unit, q=q, k=k, v=v, out=out), **head_shape(dim, unit), keys0=keys0, keys1=keys1,
            positive=scale > 0, precision=precision, block_m=cut.block_m, stages=cut.num_stages,
            num_warps=cut.num_warps, enable_fp_fusion=True,
        )  # fmt: skip

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The output."""
        out = torch.empty_strided(self._shape, self._strides, dtype=self._dtype, device=self._device)
        if self._launch is not None:
            self._launch(contiguous_rows(q), contiguous_rows(k), contiguous_rows(v), out)
        return out


def attention_few_keys(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, precision: str = "ieee", cut: FewKeys | None = None
) -> Tensor:
    """softmax(scale q k^T) v of 1 to 128 keys.

    q: (B, H, Sq, D); k, v: (B, H, Sk, D); D <= 128, or 160 with 80 keys at most; float32, bfloat16 or float16, any
    strides (read in place if rows are contiguous). scale: D ** -0.5 by default. precision: "ieee", or "tf32" for
    float32 products on tensor cores. Returns (B, H, Sq, D) in q's dtype, a view of (B, Sq, H, D) storage. Raises
    ValueError for other numbers of keys, for wider heads, and for a head that spans more than 2^31 numbers.
    """
    return FewKeysForward(q, k, v, scale=scale, precision=precision, cut=cut)(q, k, v)
