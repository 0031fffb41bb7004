"""attention's kernel for Hopper: compilation ahead of time."""

from __future__ import annotations

from checks import assert_fits

from fastdiff.kernels.ahead_of_time.catalogue import tensor
from fastdiff.kernels.ahead_of_time.compile import launches
from fastdiff.kernels.attention.hopper import FEW, MANY, WHOLE, attention_hopper


def compiles(target: str) -> None:
    """Every cut at the largest head dimension of its row and with 4000 keys: no spills, and memory for
    `resident` programs."""
    for most, cut in [*FEW, *MANY]:
        for dtype, dim, keys in (("fp16", most, 4096), ("bf16", {48: 40, 64: 40, 96: 72}.get(most, most), 4000)):
            if cut in WHOLE and keys % cut.block_n:
                continue
            q, k = tensor(dtype, 2, 8, 4096, dim), tensor(dtype, 2, 8, keys, dim)
            (launch,) = launches(target, attention_hopper, q, k, k, cut=cut)
            found = assert_fits(launch, cut, dim, shared=(227 << 10) // cut.resident)
            assert found.matrix_instruction == "wgmma.mma_async", (cut, dim, found)
            assert found.registers <= cut.registers[0], (cut, dim, found)
