"""The CUDA kernels of csrc/cuda: whether they are there, and why not. Nothing here needs a GPU or its driver."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from fastdiff.runtime.native import core


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library that they are in, or None if it was not built."""
    folder = Path(core.__file__).parent
    found = [path for path in folder.glob("_cuda.*") if path.suffix in (".so", ".dll")]
    if not found:
        return None
    loaded = ctypes.CDLL(str(found[0]))
    loaded.fastdiff_cuda_error.restype = ctypes.c_char_p
    return loaded


@functools.cache
def unavailable() -> str | None:
    """Why the CUDA kernels cannot run here, in one line, or None."""
    loaded = library()
    if loaded is None:
        return "fastdiff was installed without them: there was no nvcc of CUDA 12.8 or newer"
    count = ctypes.c_int()
    code = loaded.fastdiff_cuda_devices(ctypes.byref(count))
    if code:
        return error(code)
    return None if count.value else "there is no CUDA device"


def error(code: int) -> str:
    """What CUDA says of an error code."""
    loaded = library()
    assert loaded is not None
    return loaded.fastdiff_cuda_error(code).decode()


def step_address() -> int:
    """The address of the function that queues a solver's step, for core.StepPlan."""
    loaded = library()
    assert loaded is not None
    address = ctypes.cast(loaded.fastdiff_cuda_step, ctypes.c_void_p).value
    assert address is not None
    return address


def build() -> str | None:
    """The CUDA release that the kernels were built with, or None."""
    loaded = library()
    if loaded is None:
        return None
    version = loaded.fastdiff_cuda_version()
    return f"{version // 1000}.{version % 1000 // 10}"
