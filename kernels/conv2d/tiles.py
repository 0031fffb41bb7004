"""How a convolution is cut into tiles, and its sum into parts: what one H100 has timed, and what is timed elsewhere."""

from __future__ import annotations

import math
from typing import NamedTuple

from fastdiff.runtime.device import Device

_FULL = 0.85  # share of the multiprocessors that the last round of program instances has to keep busy
_LEAST_STEPS = 8  # of the sum, in a part of it
_MOST_SPLITS = 8


class Tile(NamedTuple):
    """block_m: pixels of the result; block_n: its channels; block_k: products that are added at a time, of one tap;
    warps, stages: of the launch; splits: parts of the sum, which another launch adds."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    splits: int = 1

    @property
    def said(self) -> str:
        """For the reader: pixels x channels / warps / stages, and the parts."""
        whole = f"{self.block_m}x{self.block_n}/{self.warps}/{self.stages}"
        return whole if self.splits == 1 else f"{whole} in {self.splits} parts"


class Size(NamedTuple):
    """What decides. rows: pixels of the result, of each phase; outputs: its channels; steps: sums over a tap and all
    channels are cut into so many of 64; size: bytes of a number; phases: 4 where an upsampled image is convolved;
    whole: 64 divides the channels of each image."""

    rows: int
    outputs: int
    steps: int
    size: int
    phases: int = 1
    whole: bool = True


def tiles(wanted: Size, device: Device) -> list[Tile]:
    """The tile to take where nothing is timed, then others to be timed."""
    if wanted.size > 2:  # products in float32 are for exactness, on no matrix unit
        return [Tile(32, 32, 32, 4, 2)]
    amd = device.architecture == "gfx942"  # two stages fill its shared memory
    deep, stages = (64 if wanted.whole else 32), (2 if amd else 3)  # masks in the channels take registers
    wide, narrow = Tile(128, 128, deep, 8, stages), Tile(128, 64, deep, 4, stages)
    first, second = (wide, narrow) if wanted.outputs % 128 == 0 else (narrow, wide)
    found = [_split(tile, wanted, device) for tile in (first, second)]
    if found[0].splits > 1:
        found.append(first)
        if _programs(wide, wanted) < device.multiprocessors // 4:  # few pixels: the narrow one makes more of them
            found[0], found[1] = found[1], found[0]
    return [tile for number, tile in enumerate(found) if tile not in found[:number]]


def _programs(tile: Tile, wanted: Size) -> int:
    """Instances of a launch without parts."""
    return wanted.phases * math.ceil(wanted.rows / tile.block_m) * math.ceil(wanted.outputs / tile.block_n)


def _split(tile: Tile, wanted: Size, device: Device) -> Tile:
    """The tile with as few parts as keep the multiprocessors busy; with one where its instances do."""
    programs, many = _programs(tile, wanted), device.multiprocessors
    if programs >= many:
        return tile
    most = max(1, min(_MOST_SPLITS, wanted.steps // _LEAST_STEPS))

    def busy(splits: int) -> float:
        return programs * splits / (many * math.ceil(programs * splits / many))

    enough = (splits for splits in range(1, most + 1) if busy(splits) >= _FULL)
    return tile._replace(splits=next(enough, max(range(1, most + 1), key=busy)))
