"""How many blocks of a kernel a multiprocessor holds, from what the kernel needs. An estimate: nothing is run."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """Of a multiprocessor: registers, bytes of shared memory, warps, blocks; bytes that each block takes beside its
    own; registers a thread and warps are given out in steps."""

    registers: int
    shared: int
    warps: int
    blocks: int
    reserved: int
    lanes: int
    step: int


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; AMD CDNA3 ISA guide, Section 3.6: a
# compute unit has four SIMDs, each with 512 registers a lane and at most 8 waves.
LIMITS = {
    "sm_80": Limits(65536, 164 << 10, 64, 32, 1024, 32, 8),
    "sm_90": Limits(65536, 228 << 10, 64, 32, 1024, 32, 8),
    "sm_100": Limits(65536, 228 << 10, 64, 32, 1024, 32, 8),
    "gfx942": Limits(4 * 512 * 64, 64 << 10, 32, 16, 0, 64, 8),
}


def resident_blocks(target: str, registers: int, shared: int, warps: int) -> int:
    """registers: of a thread; shared: bytes of a block; warps: of a block. 0 if not even one fits."""
    limits = LIMITS[target]
    each = -(-max(registers, 1) // limits.step) * limits.step
    # Registers are spread over four schedulers, each of which holds whole warps.
    warps_held = 4 * (limits.registers // 4 // (each * limits.lanes))
    by_shared = limits.shared // (shared + limits.reserved) if shared + limits.reserved else limits.blocks
    return min(limits.blocks, limits.warps // warps, warps_held // warps, by_shared)


def occupancy(target: str, blocks: int, warps: int) -> float:
    """Share of the warps that a multiprocessor can hold."""
    return blocks * warps / LIMITS[target].warps
