"""How attention is cut up: chunks of the head dimension, tiles and splits by architecture, dtype and head dimension.

What was measured for a class of shapes comes first (fastdiff/runtime/measured_tables.py). Elsewhere the tiles of sm_90
for the forward pass in half types without a mask are those that were the quickest on one H100 for heads of that width
(PyTorch 2.11, Triton 3.6; docs/notes/gpu-choice.md). All others are the largest that compile without spilled registers
and fit the shared memory (docs/notes/gpu-attention.md); no GPU has timed them. Those of sm_80 fit 99 KiB, so that they
serve 8.6, 8.9 and 12.0 as well.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from fastdiff.errors import expect
from fastdiff.runtime import measured_tables
from fastdiff.runtime.shape_classes import holds

MAX_DIM = 512  # of the forward pass; gradients and maps take NARROW
NARROW = 256
MAX_HELD = 192  # numbers of a tile that a thread has, of its 255 registers
MAX_BLOCK_N = 128


class Tile(NamedTuple):
    """block_m queries by block_n keys. apart: dk and dv in a launch each, as their sums do not fit side by side."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    apart: bool = False

    @property
    def blocks(self) -> dict[str, int]:
        """Sizes of the tile, by the kernels' names."""
        return {"block_m": self.block_m, "block_n": self.block_n}

    @property
    def said(self) -> str:
        """Queries x keys / warps / stages, and whether dk and dv are apart."""
        sizes = f"{self.block_m}x{self.block_n}/{self.num_warps}/{self.num_stages}"
        return f"{sizes} apart" if self.apart else sizes

    @property
    def options(self) -> dict[str, int | bool]:
        """Launch options. Fused multiplication and addition are set here, whatever TRITON_DEFAULT_FP_FUSION says."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


def widths(dim: int) -> tuple[int, int]:
    """Widths of the two chunks that hold `dim` columns: powers of two, at least 16 (for tl.dot), the second may be 0.

    Raises ValueError unless 1 <= dim <= 512.
    """
    expect(1 <= dim <= MAX_DIM, f"the head dimension must be between 1 and {MAX_DIM}, got {dim}")
    first = min(NARROW, max(16, 1 << (dim.bit_length() - 1)))
    if dim <= first:
        return first, 0
    second = max(16, triton.next_power_of_2(dim - first))
    return (first, second) if second < first or dim > NARROW else (2 * first, 0)


# A row: the largest sum of the widths, then a Tile. By architecture, class of dtype and kernel; "masked" if masks need
# more.
Table = tuple[tuple[Any, ...], ...]
SINGLE: dict[str, Table] = {  # one for all architectures: float32 products do not use the matrix units
    "forward": ((96, 64, 32, 8, 1), (128, 32, 32, 8, 1), (256, 16, 16, 8, 1)),
    "forward masked": ((96, 64, 32, 8, 1), (128, 32, 32, 8, 1), (256, 16, 16, 4, 1)),
    "dq": ((80, 32, 16, 4, 1), (96, 16, 16, 4, 1), (128, 32, 16, 4, 1), (256, 16, 16, 8, 1)),
    "dq masked": ((80, 32, 16, 4, 1), (96, 16, 16, 4, 1), (256, 16, 16, 8, 1)),
    "dkv": ((96, 32, 32, 8, 1), (128, 16, 32, 4, 1), (256, 16, 16, 8, 1)),
    "dkv masked": ((96, 32, 32, 8, 1), (128, 16, 32, 8, 1), (256, 16, 16, 8, 1)),
}
TILES: dict[tuple[str, str], dict[str, Table]] = {
    ("sm_80", "half"): {
        "forward": ((64, 128, 64, 4, 2), (160, 128, 64, 8, 2), (256, 64, 32, 8, 2)),
        "forward masked": ((80, 128, 64, 8, 2), (160, 128, 32, 8, 2), (256, 64, 32, 8, 2)),
        "dq": ((96, 128, 64, 8, 2), (128, 64, 64, 4, 2), (160, 64, 32, 4, 2), (256, 32, 32, 4, 2)),
        "dq masked": ((64, 128, 64, 8, 2), (160, 64, 32, 8, 2), (256, 32, 32, 4, 2)),
        "dkv": (
            (64, 64, 128, 8, 2),
            (96, 32, 64, 4, 2),
            (128, 32, 64, 8, 2),
            (160, 32, 64, 8, 2, True),
            (256, 32, 32, 8, 2),
        ),
        "dkv masked": (
            (80, 32, 64, 4, 2),
            (96, 32, 64, 8, 2, True),
            (128, 32, 64, 8, 2),
            (160, 32, 64, 8, 1, True),
            (256, 32, 32, 8, 2),
        ),
    },
    ("sm_90", "half"): {
        "forward": ((64, 128, 64, 8, 3), (80, 128, 64, 4, 3), (128, 128, 64, 8, 3), (256, 128, 64, 8, 2)),
        "forward masked": ((160, 128, 64, 8, 2), (256, 64, 32, 4, 2)),
        "dq": ((160, 128, 64, 8, 3), (256, 128, 32, 8, 2)),
        "dq masked": ((160, 128, 64, 8, 2), (256, 128, 32, 8, 2)),
        "dkv": ((80, 64, 128, 8, 3), (128, 64, 64, 8, 3), (160, 64, 64, 8, 3, True), (256, 32, 64, 8, 2, True)),
        "dkv masked": ((80, 64, 128, 8, 2), (128, 64, 64, 8, 2), (256, 32, 64, 8, 2, True)),
    },
    ("sm_100", "half"): {
        "forward": ((80, 128, 128, 8, 2), (256, 128, 64, 8, 2)),
        "dq": (
            (80, 128, 128, 8, 2),
            (96, 128, 64, 8, 2),
            (128, 128, 32, 8, 2),
            (160, 128, 64, 8, 2),
            (256, 64, 32, 4, 2),
        ),
        "dkv": ((128, 64, 128, 8, 2), (256, 32, 64, 4, 2)),
        "dkv masked": ((80, 64, 128, 8, 2), (256, 32, 64, 4, 2)),
    },
    ("gfx942", "half"): {
        "forward": ((160, 128, 64, 4, 1), (256, 64, 32, 4, 1)),
        "dq": ((80, 128, 64, 8, 1), (256, 64, 32, 4, 1)),
        "dkv": ((128, 64, 64, 4, 1), (256, 32, 64, 4, 1)),
    },
    ("sm_80", "tf32"): {
        "forward": ((64, 128, 64, 8, 2), (128, 64, 32, 4, 2), (160, 32, 32, 8, 2), (256, 32, 16, 4, 2)),
        "dq": ((64, 64, 32, 4, 2), (128, 32, 32, 4, 2), (256, 16, 16, 4, 1)),
        "dkv": ((64, 32, 64, 4, 2), (128, 16, 32, 8, 2), (256, 16, 16, 8, 1)),
    },
}
TILES |= {(target, "single"): SINGLE for target in ("sm_80", "sm_90", "sm_100", "gfx942")}
# 8 warps of 64 lanes leave too few registers for this.
TILES["gfx942", "single"] = SINGLE | {
    name: (*(row for row in SINGLE[name] if row[0] <= 128), (256, 16, 16, 4, 1)) for name in ("dq", "dq masked")
}
TILES["gfx942", "single"]["dkv"] = TILES["gfx942", "single"]["dkv masked"] = (
    (64, 32, 32, 8, 1),
    (96, 32, 32, 4, 1),
    (128, 16, 32, 8, 1),
    (256, 16, 16, 4, 1),
)
TILES |= {(target, "tf32"): TILES["sm_80", "tf32"] for target in ("sm_90", "sm_100", "gfx942")}

# Of the forward pass, to be timed beside the table's, with the largest sum of the widths: what was among the quickest
# for some head on that architecture; where nothing was measured, tiles that compile without spilled registers.
TIMED: dict[tuple[str, str], tuple[tuple[int, Tile], ...]] = {
    ("sm_80", "half"): ((128, Tile(128, 64, 8, 2)), (128, Tile(64, 64, 4, 2)), (160, Tile(64, 32, 4, 3)))
}
TIMED |= {
    key: tuple((sum(widths(dim)), Tile(*numbers)) for dim, numbers in found)
    for key, found in measured_tables.TIMED.items()
}

# Of the kernels of gradients, without a mask: to be timed beside the table's, up to these widths. The forward pass was
# the quickest with three stages and blocks of 64 on sm_90, so its tables have three stages where nothing spills, and
# these are smaller blocks, or the two stages of before. No GPU has timed any of them.
TIMED_BACKWARD: dict[tuple[str, str, str], tuple[tuple[int, Tile], ...]] = {
    ("sm_80", "half", "dq"): ((96, Tile(64, 64, 4, 3)), (80, Tile(128, 64, 8, 3))),
    ("sm_80", "half", "dkv"): ((64, Tile(64, 64, 4, 3)), (64, Tile(64, 128, 8, 3))),
    ("sm_90", "half", "dq"): ((160, Tile(64, 64, 4, 3)), (160, Tile(128, 64, 8, 2))),
    ("sm_90", "half", "dkv"): (
        (80, Tile(64, 64, 4, 3)),
        (128, Tile(64, 64, 8, 3)),
        (80, Tile(64, 128, 8, 2)),
        (128, Tile(64, 64, 8, 2)),
    ),
}

# What a sweep times of the forward pass, the likeliest first: some compile for few heads only.
SWEPT = tuple(
    Tile(m, n, warps, stages)
    for stages in (3, 2, 4)
    for n in (64, 128, 32)
    for m, warps in ((128, 8), (64, 4), (128, 4))
)

SWEPT_BACKWARD = {  # of the kernels of gradients
    "dq": tuple(
        Tile(m, n, warps, stages)
        for stages in (3, 2)
        for m, n, warps in ((128, 64, 8), (64, 64, 4), (128, 32, 8), (64, 32, 4), (128, 128, 8))
    ),
    "dkv": tuple(
        Tile(m, n, warps, stages, apart)
        for stages in (3, 2)
        for m, n, warps, apart in (
            (64, 64, 4, False), (64, 128, 8, False), (64, 64, 8, False), (32, 128, 8, False), (32, 64, 4, False),
            (64, 128, 8, True), (64, 64, 8, True),
        )
    ),
}  # fmt: skip

# For the maps, by class of dtype: a tile is made once, from all of the head dimension.
MAPS = {"half": Tile(64, 64, 4, 1), "single": Tile(16, 16, 4, 1), "tf32": Tile(32, 32, 4, 1)}


def kind_of(dtype: torch.dtype, precision: str) -> str:
    """What the products of a dtype cost: "half", "single" or "tf32"."""
    if dtype != torch.float32:
        return "half"
    return "single" if precision == "ieee" else precision


def table_of(kernel: str, target: str, kind: str, masked: bool) -> Table:
    """The tiles of a kernel ("forward", "dq", "dkv"), with or without a mask."""
    tables = TILES[target, kind]
    return tables.get(kernel + " masked", tables[kernel]) if masked else tables[kernel]


def choose(
    kernel: str, target: str, kind: str, dim: int, *, masked: bool = False, queries: int = 1 << 30, keys: int = 1 << 30,
    heads: int = 1, available: int = 1,
) -> Tile:  # fmt: skip
    """The tile of a kernel ("forward", "dq", "dkv") for a shape. heads: batch times heads; available: multiprocessors.

    Where tiles of the shape's class were measured, the quickest. Otherwise that of the tables: few keys (77 of a
    prompt) get narrower blocks where that leaves fewer columns empty, few rows lower ones where multiprocessors would
    idle.
    """
    if not masked:
        shape = {"dim": dim, "queries": queries, "keys": keys}
        for bounds, numbers in measured_tables.TILES.get((target, kind, kernel), ()):
            if holds(bounds, shape):
                return Tile(*numbers)
    width = sum(widths(dim))
    tile = next(Tile(*row) for limit, *row in table_of(kernel, target, kind, masked) if width <= limit)
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
        # 64 keys were quicker than 32 on sm_90 in the forward pass, and spill nothing there but for dq of wide heads.
        of_dq, wide = kernel == "dq", width > 128
        narrow = (of_dq and wide) if target == "sm_90" else (of_dq or wide)
        tile = tile._replace(block_m=64, block_n=min(tile.block_n, 32 if narrow else 64), num_warps=4)
    return tile


def others(kernel: str, target: str, kind: str, dim: int, masked: bool) -> list[Tile]:
    """Tiles of a kernel of gradients to be timed beside `choose`'s: those of TIMED_BACKWARD, and what tables hold for
    heads of this width and wider ones, which is known to need no more than there is."""
    width = sum(widths(dim))
    found = [] if masked else [t for most, t in TIMED_BACKWARD.get((target, kind, kernel), ()) if width <= most]
    return [*found, *(Tile(*row) for limit, *row in table_of(kernel, target, kind, masked) if limit >= width)]


def unfit(tile: Tile, kernel: str, target: str, kind: str, dim: int) -> str | None:
    """Why a tile is not to be taken, or None.

    Known of half types on sm_90. On one H100 (PyTorch 2.11, Triton 3.6) 128x128/4/1 gave wrong numbers with 77 keys and
    D = 40, and a draft of the kernel with 64x128/4/1 read past the keys. The first also spills registers.
    """
    if (target, kind) != ("sm_90", "half"):
        return None
    if tile.num_stages < 2:
        return f"{tile.said} has one stage, with which results on sm_90 were wrong"
    if kernel != "forward":
        return None
    # Scores in float32, probabilities in 16 bits and the output in float32.
    held = tile.block_m * (1.5 * tile.block_n + sum(widths(dim))) / (32 * tile.num_warps)
    if held > MAX_HELD:
        return f"{tile.said} holds {held:.0f} numbers a thread at a head dimension of {dim}, more than {MAX_HELD} spill"
    return None


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


def samples_at_once(batch: int, heads: int, queries: int, keys: int, dim: int, size: int, l2_bytes: int) -> int:
    """Of how many samples the backward kernels, which read all inputs twice, find them in L2 the second time; at
    least 1. size: bytes of a number."""
    each = heads * (3 * queries + 2 * keys) * dim * size  # q, out and its gradient; k and v
    return min(batch, max(1, l2_bytes // each))
