"""The compilations that add_group_norm_silu asks for beside those of group_norm_silu, to be checked ahead of time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from ..ahead_of_time.catalogue import TYPES, USUAL, Entry, constant, tensor
from ..ahead_of_time.compile import Launch, launches
from ..ahead_of_time.costs import Cost
from .forward import add_group_norm_silu

# Levels of Stable Diffusion's U-Net: in parts of 10 and 30 channels a group, and with whole groups of 40.
SHAPES = [(2, 320, 64, 64), (2, 960, 64, 64), (2, 1280, 16, 16)]
DETAILS = ("embedding", "residual")
# Tensors of x's size that a launch reads and writes, without the residual.
TENSORS = {"rows_whole": 3, "rows_statistics": 2, "rows_apply": 2}


def launched(target: str, dtype: str, shape: tuple[int, ...], detail: str) -> dict[str, Launch]:
    """A launch of each kernel that the shape has. detail: what is added beside the bias."""
    x = tensor(dtype, *shape, memory_format=torch.channels_last)
    vector = tensor(dtype, shape[1])
    added = {"channel_bias": tensor(dtype, *shape[:2])} if detail == "embedding" else {"residual": x}
    found = launches(target, add_group_norm_silu, x, 32, vector, **added, weight=vector, bias=vector)
    return {launch.name: launch for launch in found}


def variants(target: str) -> Iterator[Entry]:
    """All of them for a target."""
    for dtype, detail, shape in itertools.product(USUAL, DETAILS, SHAPES):
        for name, launch in launched(target, dtype, shape, detail).items():
            if name == "rows_apply" and detail == "embedding":
                continue  # the same as with a residual
            size = launch.arguments["x"].numel()
            numbers = size * (TENSORS[name] + (detail == "residual" and name != "rows_apply"))
            yield Entry(
                name, dtype, f"{shape[1] // 32} channels a group, {detail}", detail == "residual", launch,
                "x".join(map(str, shape)),
                constant(Cost(8 * numbers, *[numbers * TYPES[dtype].itemsize] * 2)),
            )  # fmt: skip
