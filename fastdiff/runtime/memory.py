"""Memory for large results: kept when a tensor dies and used again by the next one of about its size.

torch takes results from malloc, which maps those of 32 MiB and more afresh every time, and smaller ones when it has
given the end of its heap back; the system then clears each page when it is first written, which takes longer than most
operators. Here results of 4 MiB and more come from a pool of blocks that are mapped once, in huge pages. Blocks that no
tensor uses are kept up to a limit: an eighth of the machine's memory and at most 1 GiB, or FASTDIFF_POOL_LIMIT, in MiB,
when fastdiff is imported. With 0 there is no pool. On Linux only; elsewhere results come from torch.

A result that comes from the pool is an ordinary tensor but for its storage, which cannot grow: `resize_` to more
elements raises RuntimeError.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.runtime import environment
from fastdiff.runtime.dispatcher import is_ordinary, is_watched
from fastdiff.runtime.native import core

_MINIMUM = core.POOL_MINIMUM
_DIMENSIONS = {torch.channels_last: 4, torch.channels_last_3d: 5}
_from_dlpack = torch._C._from_dlpack  # of a capsule, as torch.utils.dlpack.from_dlpack ends, without what comes before
_TYPES = {torch.float64: "float64", torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class Statistics(NamedTuple):
    """Bytes: limit of what may be idle, used by living tensors, idle. Blocks so far: mapped afresh, reused."""

    limit: int
    used: int
    idle: int
    mapped: int
    reused: int


def empty_like(x: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """A tensor of x's shape, dtype and device without values, from the pool where that is faster.

    memory_format: contiguous_format, channels_last or channels_last_3d. While a tracer, a mode, a transform or a
    profiler is in force it comes from torch.
    """
    if x.nbytes < _MINIMUM or not is_ordinary(x):
        return torch.empty_like(x, memory_format=memory_format)
    return empty(x.shape, dtype=x.dtype, memory_format=memory_format)


def empty(
    shape: tuple[int, ...], *, dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """The same on the CPU, given a shape and a floating-point dtype."""
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    if _refused and size >= _MINIMUM:
        _first_limit()
    if torch.compiler.is_compiling() or size < _MINIMUM or dtype not in _TYPES or not _enabled or is_watched():
        return torch.empty(shape, dtype=dtype, device="cpu", memory_format=memory_format)
    channels_last = memory_format is not torch.contiguous_format
    if channels_last and len(shape) != _DIMENSIONS.get(memory_format):
        raise ValueError(f"{memory_format} does not fit a tensor of shape {tuple(shape)}")
    return _from_dlpack(core.pool_tensor(shape, channels_last, _TYPES[dtype]))


def release() -> int:
    """Give all idle blocks back to the system. Returns their bytes."""
    return core.pool_release()


def set_limit(num_bytes: int) -> None:
    """Keep at most this many bytes that no tensor uses; 0 for no pool. Raises ValueError if it is negative."""
    expect(num_bytes >= 0, f"num_bytes must not be negative, got {num_bytes!r}")
    global _enabled, _refused  # noqa: PLW0603
    _enabled = core.pool_available() and num_bytes > 0
    _refused = False
    core.pool_set_limit(num_bytes)


def statistics() -> Statistics:
    """What the pool holds and has done."""
    if _refused:
        _first_limit()
    return Statistics(*core.pool_statistics())


def _first_limit() -> int:
    given = environment.read("FASTDIFF_POOL_LIMIT")
    if given is not None:
        return int(given) << 20
    if not core.pool_available():
        return 0
    return min(1 << 30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8)


_enabled = False
_refused = False  # whether FASTDIFF_POOL_LIMIT holds what it may not: an error where the pool is needed
try:
    set_limit(_first_limit())
except ValueError:
    _refused = True
