"""Tiles of the forward pass for one head of 257 to 512 channels, such as a VAE's, in half types.

The head is cut into chunks of 256 and up to 256 channels. On sm_90 the queries stay in shared memory, and two groups of
four warps hold half of each chunk of the output. On sm_100 the sums of both chunks and the scores would need more than
the 512 columns of tensor memory, so that the tile is one of mma.sync. No GPU has timed these tiles.
"""

from __future__ import annotations

from fastdiff.errors import expect

from .tiles import NARROW, Tile

WIDE = {
    "sm_80": Tile(32, 16, 8, 1),
    "sm_90": Tile(64, 32, 8, 2),
    "sm_100": Tile(32, 16, 8, 1),
    "gfx942": Tile(64, 32, 4, 1),
}


def wide_tile(kernel: str, target: str, kind: str, dim: int) -> Tile:
    """The tile for a head dimension above 256. Raises ValueError for gradients and for float32."""
    expect(
        kernel == "forward" and kind == "half",
        f"head dimensions above {NARROW} are for the forward pass in half types, got {dim} for {kernel} in {kind}",
    )
    return WIDE[target]
