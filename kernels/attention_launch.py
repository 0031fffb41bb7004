"""What the kernels of attention are given: strides in units, masks that can be read in full blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.kernels.attention_tiles import MAX_BLOCK_N

MASK_UNIT = tl.constexpr(16)  # strides of masks are multiples of it

# Sizes and strides are not specialized: a kernel compiled for one resolution serves all.
SIZES = ["batch", "heads", "queries", "keys", "split_blocks", "splits", "mask_batch", "mask_head", "mask_row"] + [
    f"{name}_{stride}"
    for name in ("q", "k", "v", "out", "grad", "dq", "dk", "dv")
    for stride in ("split", "batch", "head", "row")
]


def jit(function: Callable) -> triton.JITFunction:
    """triton.jit without specialization of sizes."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(function, do_not_specialize=[name for name in names if name in SIZES])


def unit_of(*tensors: Tensor) -> int:
    """What all strides are multiples of: the numbers in 16 bytes, or 1."""
    unit = 16 // tensors[0].element_size()
    strides = [stride for t in tensors for stride, size in zip(t.stride()[:-1], t.shape) if size > 1]
    return unit if not any(stride % unit for stride in [*strides, tensors[0].shape[-1]]) else 1


def strides_of(tensor: Tensor, unit: int) -> list[int]:
    """Strides of batch, head and row in units. Raises ValueError where an offset in a head does not fit 32 bits."""
    last = (tensor.shape[2] - 1) * tensor.stride(2)
    expect(last < 2**31, f"a head of {tuple(tensor.shape)} with strides {tensor.stride()} spans more than 2^31 numbers")
    return [stride // unit if size > 1 else 0 for stride, size in zip(tensor.stride()[:3], tensor.shape)]


def contiguous_rows(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where its rows are not contiguous."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def prepare_mask(mask: Tensor | None, q: Tensor, k: Tensor) -> tuple[str, Tensor, list[int]]:
    """The kernels' `masking`, the mask, its strides. Copied only where rows are not aligned or not full blocks."""
    if mask is None:
        return "none", q, [0, 0, 0]
    masking = "boolean" if mask.dtype == torch.bool else "additive"
    mask = mask.view(torch.uint8) if masking == "boolean" else mask
    keys = k.shape[2]
    mask = mask.reshape(*[1] * (4 - mask.ndim), *mask.shape)
    aligned = mask.stride(3) == 1 and mask.shape[3] == keys and keys % MAX_BLOCK_N == 0 and mask.data_ptr() % 16 == 0
    if not aligned or any(n % MASK_UNIT.value for n, size in zip(mask.stride()[:3], mask.shape) if size > 1):
        padded = mask.new_zeros(*mask.shape[:3], max(1, triton.cdiv(keys, MAX_BLOCK_N)) * MAX_BLOCK_N)
        padded[..., :keys] = mask
        mask = padded
    return masking, mask, [n // MASK_UNIT.value if size > 1 else 0 for n, size in zip(mask.stride()[:3], mask.shape)]
