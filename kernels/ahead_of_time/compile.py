"""Compilation of Triton kernels for a GPU that is not there, and what they need: registers, stack, shared memory.

What is compiled is what a launch would compile: the launching function runs on tensors of torch's device "meta", and
its launches are kept instead of made.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver

from fastdiff.runtime import device
from fastdiff.runtime.device import Device


class Target(NamedTuple):
    """gpu: backend, architecture, lanes of a warp; shared: bytes of shared memory that a block may have."""

    gpu: tuple[str, int | str, int]
    shared: int
    device: Device


# A100, H100 SXM, B200, MI300X.
TARGETS = {
    "sm_80": Target(("cuda", 80, 32), 163 << 10, Device("sm_80", 108, 40 << 20)),
    "sm_90": Target(("cuda", 90, 32), 227 << 10, Device("sm_90", 132, 50 << 20)),
    "sm_100": Target(("cuda", 100, 32), 227 << 10, Device("sm_100", 148, 126 << 20)),
    "gfx942": Target(("hip", "gfx942", 64), 64 << 10, Device("gfx942", 304, 256 << 20)),
}
# Matrix instructions in the assembly of each kind of GPU, the one that shows the best use first.
MATRIX_INSTRUCTIONS = ("tcgen05.mma", "wgmma.mma_async", "mma.sync", "v_mfma")


class Usage(NamedTuple):
    """What a kernel needs: registers a thread, bytes of stack (spills among them) a thread, bytes of shared memory a
    block; its matrix instruction, or ""."""

    registers: int
    stack: int
    shared: int
    matrix_instruction: str


class Launch(NamedTuple):
    """One launch of a kernel, for one of TARGETS: its arguments and options by name."""

    kernel: triton.JITFunction
    arguments: dict[str, Any]
    target: str

    @property
    def name(self) -> str:
        """The kernel's."""
        return self.kernel.__name__.removesuffix("_kernel")

    def compile(self) -> CompiledKernel:
        """What the launch runs. Needs no driver of the target's; afterwards this process can launch nothing."""
        driver.set_active(_Driver(GPUTarget(*TARGETS[self.target].gpu)))
        return self.kernel.warmup(grid=(1,), **self.arguments)


class _Driver:
    """What Triton asks before it compiles, answered for a target."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> str:
        return str(self._target)  # the key of what is compiled

    def get_current_stream(self, device: str) -> int:
        return 0


def launches(target: str, function: Callable, *args: Any, **kwargs: Any) -> list[Launch]:
    """What a function launches on one of TARGETS, in order, kernels' arguments by name. Its tensors are on "meta"."""
    found = []

    def keep(kernel: triton.JITFunction, *, grid: object, warmup: bool, **arguments: Any) -> None:
        found.append(Launch(kernel, arguments, target))

    with (
        mock.patch.object(triton.JITFunction, "run", keep),
        mock.patch.object(device, "ABSENT", TARGETS[target].device),
    ):
        function(*args, **kwargs)
    return found


def usage(compiled: CompiledKernel) -> Usage:
    """What a compiled kernel needs: from cuobjdump for NVIDIA, from the assembly's metadata for AMD."""
    if "cubin" in compiled.asm:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
        registers, stack, assembly = found["REG"], found["STACK"] + found["LOCAL"], compiled.asm["ptx"]
    else:
        assembly = compiled.asm["amdgcn"]
        numbers = re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", assembly)
        found = {key: int(value) for key, value in numbers}
        registers, stack = found["vgpr_count"], found["private_segment_fixed_size"]
    matrix = next((name for name in MATRIX_INSTRUCTIONS if name in assembly), "")
    return Usage(registers, stack, compiled.metadata.shared, matrix)
