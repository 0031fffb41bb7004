"""How the group norm of a contiguous map is cut up where a group is one run of numbers: into parts of runs, or not."""

from __future__ import annotations

from typing import NamedTuple

from fastdiff.runtime.device import Device

PART, ALONE = 4096, 8192  # numbers of a tile: of parts; where an instance has a group
WARPS = 16  # at most; 16 numbers a thread, or 8 where an instance has a group or places are divided by the pixels
MOST_ALONE = 1 << 18  # numbers of a group that one instance goes through


class Flat(NamedTuple):
    """A program instance goes through `tiles` tiles of `block` numbers of a group, one after the other.

    alone: it has a whole group, which it reads twice, in one launch. Otherwise statistics of parts and the result from
    them are two launches, for `pairs` groups at a time, which L2 keeps meanwhile. even: a tile lies in one channel.
    """

    alone: bool
    block: int
    even: bool
    tiles: int
    parts: int
    pairs: int

    @property
    def num_warps(self) -> int:
        """Of a launch."""
        return min(WARPS, max(4, self.block // (512 if self.even and not self.alone else 256)))

    @property
    def said(self) -> str:
        """In a word or two."""
        return f"flat, {'a group each' if self.alone else f'{self.parts} parts'}/{self.num_warps}"


def flat_plans(samples: int, groups: int, width: int, pixels: int, size: int, *, device: Device) -> list[Flat]:
    """In parts; and, unless groups are too large for it, a group an instance. width: channels of a group; size: bytes
    of a number."""
    pairs, numbers = samples * groups, width * pixels
    block, even = _block(pixels, PART)
    tiles = -(-numbers // block)
    at_once = min(pairs, max(1, device.l2_bytes // 2 // (numbers * size)))  # what is written goes through L2 as well
    each = -(-tiles // min(tiles, max(1, -(-4 * device.multiprocessors // at_once))))
    found = [Flat(False, block, even, each, -(-tiles // each), at_once)]
    if numbers <= MOST_ALONE:
        block, even = _block(pixels, ALONE)
        found.append(Flat(True, block, even, -(-numbers // block), 1, pairs))
    return found


def _block(pixels: int, most: int) -> tuple[int, bool]:
    """Numbers of a tile, and whether they divide the pixels, as is best unless they are few."""
    largest = min(most, pixels & -pixels)
    return (largest, True) if largest >= most // 4 else (most // 2, False)
