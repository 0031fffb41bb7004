"""How the group norm of a channels-last map is cut up: into runs of pixels with all channels, or into whole groups."""

from __future__ import annotations

from typing import NamedTuple

from fastdiff.runtime.device import Device

TILE = 8192  # numbers of a tile of the statistics, 32 a thread of 8 warps
MOST_COLUMNS = 4096  # of that tile: places for channels
MAX_PARTS = 1024
MAX_SAMPLES = 65535  # of a launch, as its grid's second number
EACH = 24576  # numbers of a program instance, unless that makes too few or too many of them
MERGED = 1024  # partial results that an instance of the last launch adds up itself
WHOLE = 16384  # numbers of a tile that holds a group, 32 a thread of 16 warps
COLUMNS, APPLIED = 64, 4096  # channels and numbers of a tile of the last launch, with 4 warps


class Rows(NamedTuple):
    """whole: a program instance holds a group of a sample, in a tile of block_pixels and block_width channels.

    Otherwise one has part_pixels pixels with all channels, tile by tile: block_pixels pixels, block_groups groups of
    block_width channels, some of which are empty. It makes the statistics of all groups in its pixels. The last launch
    has tiles of apply_pixels and apply_channels, which see touched_groups groups, and adds up the parts; merged: they
    are added up by a launch in between. backwards: it begins with the last pixels of all parts, which were read
    last, and may still be in L2.
    """

    whole: bool
    block_groups: int
    block_width: int
    block_pixels: int
    num_warps: int
    part_pixels: int
    parts: int
    merged: bool = False
    apply_channels: int = 1
    apply_pixels: int = 1
    touched_groups: int = 1
    backwards: bool = False

    @property
    def said(self) -> str:
        """In a word or two."""
        if self.whole:
            return f"a group each/{self.num_warps}"
        return f"rows, {self.parts} parts{' backwards' if self.backwards else ''}/{self.num_warps}"


def rows_plan(
    samples: int, groups: int, width: int, pixels: int, *, device: Device, whole: bool | None = None, programs: int = 0
) -> Rows | None:
    """The plan for a channels-last map that has pixels, or None where the kernels have none. width: channels of a
    group. whole: as it fits by default. programs: of the statistics, all samples together; by size and device if 0."""
    if samples > MAX_SAMPLES:
        return None
    block_width, columns = _power(width), _power(pixels)
    fits = block_width * columns <= WHOLE
    if whole is None:
        whole = fits
    if whole:
        warps = min(16, max(1, block_width * columns // 1024))
        return Rows(True, 1, block_width, columns, warps, pixels, 1) if fits else None
    block_groups = _power(groups)
    if block_groups * block_width > MOST_COLUMNS:
        return None
    block_pixels = min(columns, TILE // (block_groups * block_width))
    if not programs:
        most = 4 * device.multiprocessors
        programs = min(most, max(device.multiprocessors, samples * pixels * width * groups // EACH))
    parts = min(MAX_PARTS, max(1, -(-programs // samples)), -(-pixels // block_pixels))
    part_pixels = -(-pixels // (parts * block_pixels)) * block_pixels
    parts = -(-pixels // part_pixels)
    channels = min(COLUMNS, _power(width * groups))
    touched = min(block_groups, _power((channels - 1) // width + 2))
    warps = min(8, max(1, block_groups * block_width * block_pixels // 1024))
    return Rows(
        False, block_groups, block_width, block_pixels, warps, part_pixels, parts, parts * touched > MERGED, channels,
        min(columns, APPLIED // channels), touched,
    )  # fmt: skip


def other_rows(
    best: Rows, samples: int, groups: int, width: int, pixels: int, device: Device
) -> list[Rows]:  # fmt: skip
    """Plans near `best`, of which a device may find one the quicker: whole groups and parts, more and fewer parts; maps
    that L2 does not hold beside their results go backwards as well."""
    found = [rows_plan(samples, groups, width, pixels, device=device, whole=not best.whole)]
    if not best.whole:
        for programs in (best.parts * samples // 2, 2 * best.parts * samples):
            found.append(
                rows_plan(samples, groups, width, pixels, device=device, whole=False, programs=max(1, programs))
            )
    if not best.whole and samples * pixels * width * groups > device.l2_bytes // 4:  # halves, and as many results
        tiles, rest = divmod(best.part_pixels, best.apply_pixels)
        if not rest and best.parts * tiles <= MAX_SAMPLES:
            found.append(best._replace(backwards=True))
    plans = [plan for plan in found if plan is not None and plan != best]
    return list(dict.fromkeys(plans))


def _power(number: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << (number - 1).bit_length()
