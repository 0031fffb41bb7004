"""How attention is cut up: chunks of the head dimension, tiles and splits by architecture, dtype and head dimension.

The tables hold the largest tiles that compile without spilled registers and fit the shared memory (docs/notes/
gpu-attention.md); no GPU has timed them. Those of sm_80 fit 99 KiB, so that they serve 8.6, 8.9 and 12.0 as well.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from fastdiff.errors import expect

MAX_DIM = 256
MAX_BLOCK_N = 128


class Tile(NamedTuple):
    """block_m queries by block_n keys. apart: dk and dv in a launch each, as their sums do not fit side by side."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    apart: bool = False

    @property
    def options(self) -> dict[str, int | bool]:
        """Launch options. Fused multiplication and addition are set here, whatever TRITON_DEFAULT_FP_FUSION says."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


def widths(dim: int) -> tuple[int, int]:
    """Widths of the two chunks that hold `dim` columns: powers of two, at least 16 (for tl.dot), the second may be 0.

    Raises ValueError unless 1 <= dim <= 256.
    """
    expect(1 <= dim <= MAX_DIM, f"the head dimension must be between 1 and {MAX_DIM}, got {dim}")
    first = max(16, 1 << (dim.bit_length() - 1))
    if dim <= first:
        return first, 0
    second = max(16, triton.next_power_of_2(dim - first))
    return (first, second) if second < first else (2 * first, 0)


# (largest sum of the widths, tile), ascending, by architecture, class of dtype and kernel; "masked" if masks need more.
Table = tuple[tuple[int, Tile], ...]
SINGLE: dict[str, Table] = {  # one for all architectures: float32 products do not use the matrix units
    "forward": ((96, Tile(64, 32, 8, 1)), (128, Tile(32, 32, 8, 1)), (256, Tile(16, 16, 8, 1))),
    "forward masked": ((96, Tile(64, 32, 8, 1)), (128, Tile(32, 32, 8, 1)), (256, Tile(16, 16, 4, 1))),
    "dq": ((80, Tile(32, 16, 4, 1)), (96, Tile(16, 16, 4, 1)), (128, Tile(32, 16, 4, 1)), (256, Tile(16, 16, 8, 1))),
    "dq masked": ((80, Tile(32, 16, 4, 1)), (96, Tile(16, 16, 4, 1)), (256, Tile(16, 16, 8, 1))),
    "dkv": ((96, Tile(32, 32, 8, 1)), (128, Tile(16, 32, 4, 1)), (256, Tile(16, 16, 8, 1))),
    "dkv masked": ((96, Tile(32, 32, 8, 1)), (128, Tile(16, 32, 8, 1)), (256, Tile(16, 16, 8, 1))),
}
TILES: dict[tuple[str, str], dict[str, Table]] = {
    ("sm_80", "half"): {
        "forward": ((64, Tile(128, 64, 4, 2)), (160, Tile(128, 64, 8, 2)), (256, Tile(64, 32, 8, 2))),
        "forward masked": ((80, Tile(128, 64, 8, 2)), (160, Tile(128, 32, 8, 2)), (256, Tile(64, 32, 8, 2))),
        "dq": (
            (96, Tile(128, 64, 8, 2)),
            (128, Tile(64, 64, 4, 2)),
            (160, Tile(64, 32, 4, 2)),
            (256, Tile(32, 32, 4, 2)),
        ),
        "dq masked": ((64, Tile(128, 64, 8, 2)), (160, Tile(64, 32, 8, 2)), (256, Tile(32, 32, 4, 2))),
        "dkv": (
            (64, Tile(64, 128, 8, 2)),
            (96, Tile(32, 64, 4, 2)),
            (128, Tile(32, 64, 8, 2)),
            (160, Tile(32, 64, 8, 2, apart=True)),
            (256, Tile(32, 32, 8, 2)),
        ),
        "dkv masked": (
            (80, Tile(32, 64, 4, 2)),
            (96, Tile(32, 64, 8, 2, apart=True)),
            (128, Tile(32, 64, 8, 2)),
            (160, Tile(32, 64, 8, 1, apart=True)),
            (256, Tile(32, 32, 8, 2)),
        ),
    },
    ("sm_90", "half"): {
        "forward": ((128, Tile(128, 128, 8, 2)), (256, Tile(128, 64, 8, 2))),
        "forward masked": ((160, Tile(128, 64, 8, 2)), (256, Tile(64, 32, 4, 2))),
        "dq": ((160, Tile(128, 64, 8, 2)), (256, Tile(128, 32, 8, 2))),
        "dkv": (
            (80, Tile(64, 128, 8, 2)),
            (128, Tile(64, 64, 8, 2)),
            (160, Tile(64, 64, 8, 2, apart=True)),
            (256, Tile(32, 64, 8, 2, apart=True)),
        ),
        "dkv masked": ((80, Tile(64, 128, 8, 2)), (128, Tile(64, 64, 8, 2)), (256, Tile(32, 64, 8, 2, apart=True))),
    },
    ("sm_100", "half"): {
        "forward": ((80, Tile(128, 128, 8, 2)), (256, Tile(128, 64, 8, 2))),
        "dq": (
            (80, Tile(128, 128, 8, 2)),
            (96, Tile(128, 64, 8, 2)),
            (128, Tile(128, 32, 8, 2)),
            (160, Tile(128, 64, 8, 2)),
            (256, Tile(64, 32, 4, 2)),
        ),
        "dkv": ((128, Tile(64, 128, 8, 2)), (256, Tile(32, 64, 4, 2))),
        "dkv masked": ((80, Tile(64, 128, 8, 2)), (256, Tile(32, 64, 4, 2))),
    },
    ("gfx942", "half"): {
        "forward": ((160, Tile(128, 64, 4, 1)), (256, Tile(64, 32, 4, 1))),
        "dq": ((80, Tile(128, 64, 8, 1)), (256, Tile(64, 32, 4, 1))),
        "dkv": ((160, Tile(64, 64, 4, 1)), (256, Tile(32, 64, 4, 1))),
    },
    ("sm_80", "tf32"): {
        "forward": (
            (64, Tile(128, 64, 8, 2)),
            (128, Tile(64, 32, 4, 2)),
            (160, Tile(32, 32, 8, 2)),
            (256, Tile(32, 16, 4, 2)),
        ),
        "dq": ((64, Tile(64, 32, 4, 2)), (128, Tile(32, 32, 4, 2)), (256, Tile(16, 16, 4, 1))),
        "dkv": ((64, Tile(32, 64, 4, 2)), (128, Tile(16, 32, 8, 2)), (256, Tile(16, 16, 8, 1))),
    },
}
TILES |= {(target, "single"): SINGLE for target in ("sm_80", "sm_90", "sm_100", "gfx942")}
# 8 warps of 64 lanes leave too few registers for this.
TILES["gfx942", "single"] = SINGLE | {
    name: (*(entry for entry in SINGLE[name] if entry[0] <= 128), (256, Tile(16, 16, 4, 1)))
    for name in ("dq", "dq masked")
}
TILES["gfx942", "single"]["dkv"] = TILES["gfx942", "single"]["dkv masked"] = (
    (64, Tile(32, 32, 8, 1)),
    (96, Tile(32, 32, 4, 1)),
    (128, Tile(16, 32, 8, 1)),
    (256, Tile(16, 16, 4, 1)),
)
TILES |= {(target, "tf32"): TILES["sm_80", "tf32"] for target in ("sm_90", "sm_100", "gfx942")}

# For the maps, by class of dtype: a tile is made once, from all of the head dimension.
MAPS = {"half": Tile(64, 64, 4, 1), "single": Tile(16, 16, 4, 1), "tf32": Tile(32, 32, 4, 1)}


def kind_of(dtype: torch.dtype, precision: str) -> str:
    """What the products of a dtype cost: "half", "single" or "tf32"."""
    if dtype in (torch.float16, torch.bfloat16):
        return "half"
    expect(dtype == torch.float32, f"the kernel takes float32, bfloat16 and float16, not {dtype}")
    expect(precision in ("ieee", "tf32"), f"precision must be 'ieee' or 'tf32', got {precision!r}")
    return "single" if precision == "ieee" else "tf32"


def choose(
    kernel: str, target: str, kind: str, dim: int, *, masked: bool = False, queries: int = 1 << 30, keys: int = 1 << 30,
    heads: int = 1, available: int = 1,
) -> Tile:  # fmt: skip
    """The tile of a kernel ("forward", "dq", "dkv") for a shape. heads: batch times heads; available: multiprocessors.

    Few keys (77 of a prompt) get narrower blocks where that leaves fewer columns empty; few rows get lower ones where
    multiprocessors would idle.
    """
    tables = TILES[target, kind]
    table = tables.get(kernel + " masked", tables[kernel]) if masked else tables[kernel]
    width = sum(widths(dim))
    tile = next(tile for limit, tile in table if width <= limit)
    if kernel == "dkv":
        return tile
    if keys < 2 * tile.block_n:
        narrower = [n for n in (tile.block_n, tile.block_n // 2, tile.block_n // 4) if n >= 32 or n == tile.block_n]
        chosen = min(narrower, key=lambda n: (triton.cdiv(keys, n) * n, -n))
        # On sm_100, tiles of 128 x 32 and 64 columns spill with 8 warps.
        few = target == "sm_100" and chosen == 32 and width <= 64
        tile = tile._replace(block_n=chosen, num_warps=4 if few else tile.num_warps)
    idle = triton.cdiv(queries, tile.block_m) * heads < available
    if tile.block_m == 128 and width <= 160 and not masked and (idle or queries <= 64):
        tile = tile._replace(
            block_m=64, block_n=min(tile.block_n, 32 if kernel == "dq" or width > 128 else 64), num_warps=4
        )
    return tile


def splits_for(programs: int, blocks: int, available: int, most: int = 16) -> int:
    """Into how many parts, at most `most`, to cut a loop over `blocks` blocks, so that few programs fill the device; 1
    where they do."""
    if 2 * programs > available:
        return 1
    return max(1, min(available // programs, blocks // 8, most))


def most_splits_of_dkv(queries: int, keys: int, size: int) -> int:
    """So many that the parts of dk and dv in float32 are at most a twelfth of what the backward kernels read and write
    besides. size: bytes of a number."""
    return max(1, min(16, 4 * (queries + keys) * size // (12 * 2 * keys * 4)))


def samples_at_once(batch: int, heads: int, queries: int, keys: int, dim: int, size: int, second_cache: int) -> int:
    """Of how many samples the backward kernels, which read all inputs twice, find them in the second cache the second
    time; at least 1. size: bytes of a number; second_cache: in bytes."""
    each = heads * (3 * queries + 2 * keys) * dim * size  # q, out and its gradient; k and v
    return min(batch, max(1, second_cache // each))
