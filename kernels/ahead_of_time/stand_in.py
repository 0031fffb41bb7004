"""A GPU that is not there, for Triton: kernels are compiled for it, and what reaches its driver goes to a function.

Tests and benchmarks run all that a launch does in Python with it. Nothing is computed.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver

from fastdiff.runtime import device

from .. import launching
from .compile import TARGETS


class StandIn:
    """Triton's driver of a GPU that is not there. launched(*arguments): is given what Triton's launcher is given.

    Its first device is number -1, which is what tensors on the CPU say that theirs is.
    """

    def __init__(self, target: str, launched: Callable[..., None]) -> None:
        self._target, self.launched = GPUTarget(*TARGETS[target].gpu), launched
        self.device, self.streams = -1, {-1: 7}
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self.device

    def set_current_device(self, number: int) -> None:
        self.device = number

    def get_current_stream(self, number: int) -> int:
        return self.streams.get(number, 0)

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return _launch  # kernels keep it, and are themselves kept by Triton

    def get_device_properties(self, number: int) -> dict[str, int]:
        return {"max_shared_mem": TARGETS["sm_90"].shared}

    def load_binary(self, name: str, binary: bytes, shared: int, number: int) -> tuple[int, ...]:
        loaded = 1, zlib.crc32(binary), 32, 0, 1024  # module, function, registers, spills, threads
        return loaded if _TELLS_THREADS else loaded[:4]

    def unload_module(self, module: int) -> None:
        pass


# Whether Triton asks how many threads a kernel may have: not before 3.4.
_TELLS_THREADS = "n_max_threads" in inspect.getsource(CompiledKernel)


def _is_tensor(tensor: Any) -> bool:
    return isinstance(tensor, Tensor)  # no mock, which would keep what it is given


def _launch(*arguments: Any) -> None:
    driver.active.launched(*arguments)


@contextmanager
def stand_in(target: str, launched: Callable[..., None]) -> Iterator[StandIn]:
    """Tensors on the CPU are taken for tensors on one of compile.TARGETS, with `launched` for Triton's launcher."""
    found = StandIn(target, launched)
    holder = "_active" if hasattr(driver, "_active") else "active"  # the latter until Triton 3.3
    before = getattr(driver, holder)
    driver.set_active(found)
    try:
        with (
            mock.patch.object(launching, "on_gpu", _is_tensor),
            mock.patch.object(device, "ABSENT", TARGETS[target].device),
        ):
            yield found
    finally:
        setattr(driver, holder, before)
