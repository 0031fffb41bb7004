"""Compilation of Triton kernels for a GPU that is not there, and what they need: registers, stack, shared memory."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

# Name: (backend, architecture, lanes of a warp), bytes of shared memory that a block may have.
TARGETS = {
    "sm_80": (("cuda", 80, 32), 163 << 10),
    "sm_90": (("cuda", 90, 32), 227 << 10),
    "sm_100": (("cuda", 100, 32), 227 << 10),
    "gfx942": (("hip", "gfx942", 64), 64 << 10),
}
# Matrix instructions in the assembly of each kind of GPU, the one that shows the best use first.
MATRIX_INSTRUCTIONS = ("tcgen05.mma", "wgmma.mma_async", "mma.sync", "v_mfma")


class Variant(NamedTuple):
    """One compilation of a kernel. types: Triton's name of each argument's type; constants: values of constexpr ones;
    options: num_warps and others; multiples: which integers are multiples of 16, as Triton finds out at a launch."""

    kernel: triton.JITFunction
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, Any]
    multiples: tuple[str, ...] = ()


class Usage(NamedTuple):
    """What a kernel needs: registers a thread, bytes of stack (spills among them) a thread, bytes of shared memory a
    block; its matrix instruction, or ""."""

    registers: int
    stack: int
    shared: int
    matrix_instruction: str


def compile_variant(variant: Variant, target: str) -> CompiledKernel:
    """Compile for one of TARGETS, with pointers that are multiples of 16 bytes. Needs no driver."""
    names = variant.kernel.arg_names
    types = {name: "constexpr" if name in variant.constants else variant.types[name] for name in names}
    known = [i for i, name in enumerate(names) if types[name].startswith("*") or name in variant.multiples]
    aligned = {(i,): [["tt.divisibility", 16]] for i in known}
    source = ASTSource(fn=variant.kernel, signature=types, constexprs=dict(variant.constants), attrs=aligned)
    return triton.compile(source, target=GPUTarget(*TARGETS[target][0]), options=dict(variant.options))


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
        registers, stack = (
            int(re.search(rf"\.{key}:\s+(\d+)", assembly)[1]) for key in ("vgpr_count", "private_segment_fixed_size")
        )
    matrix = next((name for name in MATRIX_INSTRUCTIONS if name in assembly), "")
    return Usage(registers, stack, compiled.metadata.shared, matrix)
