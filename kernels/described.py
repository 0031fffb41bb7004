"""Launches of kernels whose first parameters are TMA descriptors, which hold a tensor's address and are made for each
call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver

from . import launching
from .launching import ALIGNMENT, Launch, Prepared, _settings, _watched, unknown_launcher


class DescribedLaunch(Launch):
    """A Launch of a kernel with descriptors before its pointers."""

    __slots__ = ("_described",)

    def __init__(self, kernel: Any, grid: Sequence[int], **arguments: Any) -> None:
        super().__init__(kernel, grid, **arguments)
        self._described: dict[int, Prepared] = {}  # by device

    def described(self, descriptors: Sequence[Any], *tensors: Tensor) -> None:
        """Launch on the tensors' device. The tensors' addresses are multiples of 16."""
        given = [*descriptors, *tensors]
        if not launching.on_gpu(tensors[0]) or unknown_launcher() or _watched(self._kernel):
            self._by_triton(tuple(given))
            return
        active, device = driver.active, tensors[0].get_device()
        before = active.get_current_device()
        if before != device:
            active.set_current_device(device)
        try:
            prepared = self._described.get(device)
            if prepared is None or prepared.driver is not active or prepared.settings != _settings():
                self._prepare(device, given)
                return
            pointers = [tensor.data_ptr() for tensor in tensors]
            assert not any(pointer % ALIGNMENT for pointer in pointers)
            prepared.run(
                *self._grid, active.get_current_stream(device), prepared.function, prepared.metadata, None, None, None,
                *descriptors, *pointers, *prepared.constants,
            )  # fmt: skip
        finally:
            if before != device:
                active.set_current_device(before)

    def _prepare(self, device: int, given: Sequence[Any]) -> None:
        """Launch by Triton's own path, and keep what it compiled."""
        settings = _settings()
        compiled = self._by_triton(tuple(given))
        if isinstance(compiled, CompiledKernel):
            self._described[device] = Prepared(
                compiled.run, compiled.function, compiled.packed_metadata, self._constants(), device, driver.active,
                settings,
            )  # fmt: skip
