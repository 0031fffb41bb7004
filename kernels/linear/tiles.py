"""Tiles of the products, by architecture: those that are timed, and which one is taken where nothing is.

Measured on one H100 in float16, PyTorch 2.11, Triton 3.6, in a CUDA graph, in microseconds; "tma": tiles of x and the
weight come by tensor descriptors. (rows, K, N), bias and residual: (8192, 320, 320) pointers 128x64 10.5, tma 128x128
11.4; (2048, 640, 640) tma 64x128 7.5, pointers 64x64 7.7, tma 128x64 9.8; bias, gate and residual: (512, 1152, 1152)
tma 128x64 7.2, pointers 128x64 7.6, tma 64x128 7.8. GEGLU, of twice N columns: (8192, 320, 1280) tma 128x128 43.7,
pointers 128x64 46.9; (2048, 640, 2560) pointers 128x64 35.8, tma 128x128 36.1. Tiles of other architectures are not
measured.
"""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """Of a program instance: rows and columns of the result, of both halves for a gated unit; numbers of K at a time.
    described: x and the weight come by tensor descriptors."""

    rows: int
    columns: int
    inputs: int
    num_warps: int
    num_stages: int
    described: bool = False

    @property
    def said(self) -> str:
        """In a word or two."""
        sizes = "x".join(map(str, self[:3]))
        return f"{'tma ' if self.described else ''}{sizes}/{self.num_warps}/{self.num_stages}"


DESCRIBED = ("sm_90", "sm_100")  # architectures with tensor descriptors
GROUP = 8  # tiles of rows that follow each other, so that they find the same columns of the weight in L2
_WIDE, _TALL = Tile(64, 128, 64, 4, 4, True), Tile(128, 64, 64, 4, 5, True)
_PLAIN, _SMALL = Tile(128, 64, 64, 4, 4), Tile(64, 64, 64, 4, 4)
_LARGE = Tile(128, 128, 64, 8, 4, True)
_UNIT, _UNIT_PLAIN = Tile(128, 128, 64, 8, 3, True), Tile(128, 64, 64, 8, 3)

# Of half types, by architecture and whether it is a gated unit. The first without descriptors is the fallback.
HALF: dict[tuple[str, bool], tuple[Tile, ...]] = {
    ("sm_80", False): (Tile(128, 64, 64, 4, 3), Tile(64, 64, 64, 4, 3)),
    ("sm_80", True): (Tile(128, 64, 64, 8, 3),),
    ("sm_90", False): (_WIDE, _TALL, _PLAIN, _SMALL, _LARGE),
    ("sm_90", True): (_UNIT, _UNIT_PLAIN),
    ("sm_100", False): (_WIDE, _TALL, _PLAIN, _SMALL),
    ("sm_100", True): (_UNIT, _UNIT_PLAIN),
    ("gfx942", False): (Tile(128, 64, 64, 4, 2), Tile(64, 64, 64, 4, 2)),
    ("gfx942", True): (Tile(64, 64, 64, 4, 2),),
}
# float32 by the units of float32, to which nothing is rounded: exact and slow, for tests.
SINGLE = Tile(32, 32, 32, 4, 2)
# Where rows do not start at multiples of 16 numbers, so that loads are narrow.
ODD = Tile(32, 32, 16, 4, 1)
_SHORT = 512  # inputs up to which loads by pointers were the quicker


def tiles(architecture: str, size: int, glu: bool, described: bool, followed: bool = False) -> list[Tile]:
    """Those that may be the quickest. size: bytes of a number; described: whether there can be tensor descriptors;
    followed: there is a gate or a residual, beside which a gated unit of 128 columns does not stay in registers."""
    if size != 2:
        return [SINGLE]
    found = [tile for tile in HALF[architecture, glu] if described or not tile.described]
    return [tile for tile in found if tile.columns <= 64] if glu and followed else found


def choose(
    architecture: str, size: int, rows: int, columns: int, inputs: int, *, glu: bool, described: bool, available: int,
    followed: bool = False,
) -> Tile:  # fmt: skip
    """The tile where nothing is timed. available: multiprocessors; others as of `tiles`."""
    found = tiles(architecture, size, glu, described, followed)
    if glu or size != 2:
        return found[0]
    if inputs <= _SHORT and _PLAIN in found:
        return _PLAIN
    if _TALL in found and -(-rows // _TALL.rows) * -(-columns // _TALL.columns) <= available:
        return _TALL  # one at a time fits a multiprocessor
    return found[0]
