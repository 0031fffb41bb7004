"""What the kernels of attention are given: tiles, strides in units, masks that can be read in full blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.runtime.device import properties

from .. import tuning
from .blocks import MASK_UNIT
from .tiles import MAX_BLOCK_N, NARROW, Tile, choose, kind_of, others, widths
from .wide import wide_tile


def tile_for(
    kernel: str, q: Tensor, k: Tensor, mask: Tensor | None, precision: str, run: Callable[[Tile], object]
) -> Tile:  # fmt: skip
    """The tile of a kernel ("forward", "dq", "dkv") for a call: of the forward pass by the tables, as its tiles are
    timed as candidates of the operator; of the others by timing, unless FASTDIFF_TUNE=0.

    run(tile): the call with this one. Timed are the default and the tiles of `others`.
    """
    (batch, heads, queries, dim), keys, device = q.shape, k.shape[2], properties(q.device)
    kind, masked = kind_of(q.dtype, precision), mask is not None
    if dim > NARROW:
        return wide_tile(kernel, device.architecture, kind, dim)
    sizes: dict[str, int] = dict(queries=queries, keys=keys, heads=batch * heads, available=device.multiprocessors)
    default = choose(kernel, device.architecture, kind, dim, masked=masked, **sizes)
    if kernel == "forward" or not tuning.enabled(q.device):
        return default
    candidates = list(dict.fromkeys([default, *others(kernel, device.architecture, kind, dim, masked)]))
    masking = "none" if mask is None else mask.dtype
    key = (f"attention {kernel}", q.dtype, precision, dim, batch * heads, queries, keys, masking)
    return tuning.best(key, candidates, run, q.device)


def head_shape(dim: int, unit: int) -> dict[str, int]:
    """The head dimension, the widths of its chunks, and the unit of strides, by the kernels' names."""
    width0, width1 = widths(dim)
    return {"dim": dim, "width0": width0, "width1": width1, "unit": unit}


def unit_of(*tensors: Tensor) -> int:
    """What all strides are multiples of: the numbers in 16 bytes, or 1."""
    unit = 16 // tensors[0].element_size()
    strides = [stride for t in tensors for stride, size in zip(t.stride()[:-1], t.shape) if size > 1]
    return unit if not any(stride % unit for stride in [*strides, tensors[0].shape[-1]]) else 1


def strides(unit: int, **tensors: Tensor) -> dict[str, int]:
    """Strides of batch, head and row of (B, H, S, D) tensors in units, by the kernels' names: q_batch, q_head, q_row.

    Raises ValueError where an offset in a head does not fit 32 bits.
    """
    for t in tensors.values():
        shape, steps = tuple(t.shape), t.stride()
        expect(
            (shape[2] - 1) * steps[2] < 2**31, f"a head of {shape} with strides {steps} spans more than 2^31 numbers"
        )
    return {key: stride for name, t in tensors.items() for key, stride in _in_units(name, t, unit)}


def _in_units(name: str, tensor: Tensor, unit: int) -> list[tuple[str, int]]:
    axes = zip(("batch", "head", "row"), tensor.stride(), tensor.shape)
    return [(f"{name}_{axis}", stride // unit if size > 1 else 0) for axis, stride, size in axes]


def contiguous_rows(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where its rows are not contiguous."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


class PreparedMask:
    """A mask as the kernels read it: copied where its rows are not aligned or not full blocks.

    arguments: `masking` and the strides, by the kernels' names. Called with a mask like this one, it is what to read.
    """

    def __init__(self, mask: Tensor | None, q: Tensor, k: Tensor) -> None:
        self._in_place, self._boolean = True, mask is not None and mask.dtype == torch.bool
        masking, strides = "none", {"mask_batch": 0, "mask_head": 0, "mask_row": 0}
        if mask is not None:
            masking = "boolean" if self._boolean else "additive"
            whole = mask.reshape(*[1] * (4 - mask.ndim), *mask.shape)
            keys = k.shape[2]
            aligned = whole.stride(3) == 1 and whole.shape[3] == keys and keys % MAX_BLOCK_N == 0
            steps = [step for step, size in zip(whole.stride()[:3], whole.shape) if size > 1]
            self._in_place = aligned and in_blocks(mask) and not any(step % MASK_UNIT.value for step in steps)
            strides = dict(_in_units("mask", whole if self._in_place else self._padded(whole, keys), MASK_UNIT.value))
        self.arguments: dict[str, Any] = {"masking": masking, **strides}

    def __call__(self, mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """What the kernels read."""
        read = mask.view(torch.uint8) if self._boolean else mask
        if self._in_place:
            return read
        return self._padded(read.reshape(*[1] * (4 - mask.ndim), *mask.shape), k.shape[2])

    @staticmethod
    def _padded(mask: Tensor, keys: int) -> Tensor:
        padded = mask.new_zeros(*mask.shape[:3], max(1, triton.cdiv(keys, MAX_BLOCK_N)) * MAX_BLOCK_N)
        padded[..., :keys] = mask
        return padded


def in_blocks(mask: Tensor | None) -> bool:
    """Whether blocks of the mask can be read from where its first number is."""
    return mask is None or mask.data_ptr() % 16 == 0
