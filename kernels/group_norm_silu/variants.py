"""The compilations of group_norm_silu's kernels that a launch may ask for, to be checked ahead of time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from ..ahead_of_time.catalogue import TYPES, USUAL, Entry, constant, tensor
from ..ahead_of_time.compile import Launch, launches
from ..ahead_of_time.costs import Cost
from .backward import group_norm_silu_backward
from .forward import group_norm_silu

# A level of Stable Diffusion's U-Net with the largest groups that stay in registers, and one of its autoencoder.
WHOLE, WHOLE_LAST, LARGE = (2, 640, 32, 32), (2, 1280, 16, 16), (1, 128, 512, 512)
# Tensors of x's size that a launch reads and writes.
TENSORS = {"whole": 2, "statistics": 1, "apply": 2, "sums": 2, "dx": 3}


def launched(target: str, dtype: str, *, channels_last: bool, adaptive: bool = False) -> dict[str, Launch]:
    """A launch of each kernel in TENSORS. adaptive: with scale and shift."""
    found = []
    for shape in (LARGE, WHOLE_LAST if channels_last else WHOLE):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x, vector, row = tensor(dtype, *shape, memory_format=layout), tensor(dtype, shape[1]), tensor(dtype, *shape[:2])
        modulation = {"scale": row, "shift": row} if adaptive else {}
        if shape == LARGE:
            found += launches(target, group_norm_silu_backward, x, x, 32, vector, vector, **modulation)
        found += launches(target, group_norm_silu, x, 32, vector, vector, **modulation)
    return {launch.name.removeprefix("group_norm_silu_"): launch for launch in found}


def variants(target: str) -> Iterator[Entry]:
    """All of them for a target."""
    for dtype, last, adaptive in itertools.product(USUAL, (False, True), (False, True)):
        for name, launch in launched(target, dtype, channels_last=last, adaptive=adaptive).items():
            shape = launch.arguments["x"].shape
            numbers = shape.numel() * TENSORS[name]
            cost = Cost(6 * numbers, *[numbers * TYPES[dtype].itemsize] * 2)
            detail = ("channels last" if last else "channels first") + " adaptive" * adaptive
            yield Entry(
                name, dtype, detail, not adaptive, launch, "x".join(map(str, shape)), constant(cost)
            )  # fmt: skip
