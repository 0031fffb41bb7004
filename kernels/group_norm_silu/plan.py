"""How a group norm is cut up: groups that stay in registers, and parts of those that do not."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from typing import NamedTuple

from fastdiff.runtime.device import Device

# Numbers of a group that stays in registers, 40 a thread of 16 warps; channels-last, where addresses take more of them.
MAX_WHOLE, MAX_WHOLE_LAST = 20480, 10240
TILE = 4096  # numbers of a tile otherwise
MAX_PARTS = 128
SECTOR = 64  # bytes that memory moves at least


class Plan(NamedTuple):
    """whole: a program instance holds a group, in a tile of block_channels and one of more_channels channels (or none).
    Otherwise it goes over part_pixels pixels of one, tile by tile, and launches follow each other for `pairs` groups at
    a time, which L2 keeps meanwhile."""

    whole: bool
    block_channels: int
    block_pixels: int
    num_warps: int
    part_pixels: int
    parts: int
    pairs: int
    more_channels: int = 0

    @property
    def options(self) -> dict[str, int | bool]:
        """Of a launch: channels and pixels of a tile, warps."""
        blocks = {"block_channels": self.block_channels, "block_pixels": self.block_pixels}
        return {**blocks, "num_warps": self.num_warps, "enable_fp_fusion": True}

    @property
    def said(self) -> str:
        """In a word or two."""
        return f"{'whole' if self.whole else f'{self.parts} parts'}/{self.num_warps}"

    def launches(self, pairs: int) -> Iterator[tuple[int, int]]:
        """The first of `pairs` groups of all samples that a launch has, and how many."""
        for first in range(0, pairs, self.pairs):
            yield first, min(self.pairs, pairs - first)


def plan(
    samples: int, num_groups: int, width: int, pixels: int, size: int, *,
    channels_last: bool, device: Device, tensors: int = 1, whole: bool | None = None,
) -> Plan:  # fmt: skip
    """width: channels of a group; size: bytes of a number.

    tensors: how many of x's size are read more than once. whole: as it fits by default.
    """
    pairs = samples * num_groups
    channels, columns = _power(width), _power(pixels)
    first = 1 << (width.bit_length() - 1)
    more = _power(width - first) if width > first else 0  # 20 channels are 16 and 4
    if whole is None:
        whole = (first + more) * columns <= (MAX_WHOLE_LAST if channels_last else MAX_WHOLE)
    if whole:
        warps = min(16, _power(max(1, first * columns // 1024)))
        return Plan(True, first, columns, warps, pixels, 1, pairs, more)
    # A tile is long in the direction in which memory is contiguous.
    if channels_last:
        channels = min(128, channels)
        columns = TILE // channels
    else:
        even = min(8, width & -width)  # channels of a tile without one that is empty
        columns = min(TILE // even, max(16, columns))
        channels = even if columns == TILE // even else min(TILE // columns, channels)
    each = width * pixels * size * tensors
    # Half of L2: what is written goes through it as well.
    at_once = min(pairs, max(1, device.l2_bytes // 2 // each))
    if channels_last and at_once < pairs:
        unit = SECTOR // gcd(SECTOR, width * size)  # groups whose channels fill sectors
        at_once = min(pairs, max(unit, at_once // unit * unit))
    # Four program instances a multiprocessor, each with two tiles or more.
    most = max(1, min(MAX_PARTS, width * pixels // (2 * TILE)))
    parts = min(most, -(-4 * device.multiprocessors // at_once))
    part_pixels = -(-pixels // parts // columns) * columns if pixels > columns else pixels
    return Plan(False, channels, columns, 8, part_pixels, -(-pixels // part_pixels), at_once)


def alternatives(best: Plan, in_parts: Plan | None) -> list[Plan]:
    """Plans near `best`, which was chosen without a device: with half or twice the warps, and, instead of whole groups,
    in parts."""
    warps = [n for n in (best.num_warps // 2, 2 * best.num_warps) if 1 <= n <= 16]
    found = [best._replace(num_warps=n) for n in warps]
    return [*found, in_parts] if in_parts is not None else found


def _power(number: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << (number - 1).bit_length()
