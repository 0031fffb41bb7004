"""The compilations of group_norm_silu's kernels that a launch may ask for, to be checked ahead of time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..ahead_of_time.catalogue import TYPES, USUAL, Entry, constant, tensor
from ..ahead_of_time.compile import TARGETS, Launch, launches
from ..ahead_of_time.costs import Cost
from .backward import group_norm_silu_backward
from .flat_plan import flat_plans
from .launch import group_norm_silu, plan_for

# A level of Stable Diffusion's U-Net with the largest groups that stay in registers, and one of its autoencoder.
WHOLE, WHOLE_LAST, LARGE = (2, 640, 32, 32), (2, 1280, 16, 16), (1, 128, 512, 512)
# Levels of the U-Net: 10, 30 and 80 channels a group, of which none fills a power of two.
LEVELS = [(2, 320, 64, 64), (2, 960, 64, 64), (2, 2560, 16, 16)]
# Tensors of x's size that a launch reads and writes.
TENSORS = {
    "whole": 2, "statistics": 1, "apply": 2, "sums": 2, "dx": 3,
    "rows_whole": 2, "rows_statistics": 1, "rows_merge": 0, "rows_apply": 2,
    "flat": 2, "flat_statistics": 1, "flat_apply": 2,
}  # fmt: skip


def in_parts(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, **options: Any) -> None:
    """group_norm_silu of a channels-last map by the kernels of all layouts."""
    group_norm_silu(x, num_groups, weight, bias, **options, cut=plan_for(x, num_groups, True))


def runs(target: str, dtype: str, shape: tuple[int, ...], **modulation: Tensor) -> list[Launch]:
    """The launches of a contiguous map in which a group is a run of numbers: in parts, then by an instance a group."""
    x, vector = tensor(dtype, *shape), tensor(dtype, shape[1])
    plans = flat_plans(
        shape[0], 32, shape[1] // 32, shape[2] * shape[3], x.element_size(), device=TARGETS[target].device
    )
    options: list[dict[str, Any]] = [{**modulation, "cut": cut} for cut in plans]
    return [
        launch for each in options for launch in launches(target, group_norm_silu, x, 32, vector, vector, **each)
    ]  # fmt: skip


def launched(target: str, dtype: str, *, channels_last: bool, adaptive: bool = False) -> dict[str, Launch]:
    """A launch of each kernel in TENSORS that takes the layout. adaptive: with scale and shift."""
    found = []
    for shape in (LARGE, WHOLE_LAST if channels_last else WHOLE):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x, vector, row = tensor(dtype, *shape, memory_format=layout), tensor(dtype, shape[1]), tensor(dtype, *shape[:2])
        modulation = {"scale": row, "shift": row} if adaptive else {}
        if shape == LARGE:
            found += launches(target, group_norm_silu_backward, x, x, 32, vector, vector, **modulation)
        for function in (in_parts, group_norm_silu) if channels_last else (group_norm_silu,):
            found += launches(target, function, x, 32, vector, vector, **modulation)
    if not channels_last:
        row = tensor(dtype, *LEVELS[0][:2])
        found += runs(target, dtype, LEVELS[0], **({"scale": row, "shift": row} if adaptive else {}))
    return {launch.name.removeprefix("group_norm_silu_"): launch for launch in found}


def levels(target: str, dtype: str) -> Iterator[Launch]:
    """The launches of channels-last maps of LEVELS, and of two maps side by side."""
    for shape in LEVELS:
        x = tensor(dtype, *shape, memory_format=torch.channels_last)
        yield from launches(target, group_norm_silu, x, 32, *[tensor(dtype, shape[1])] * 2)
    first, second = (tensor(dtype, 2, n, 64, 64, memory_format=torch.channels_last) for n in (640, 320))
    yield from launches(target, group_norm_silu, first, 32, *[tensor(dtype, 960)] * 2, skip=second)


def cost(name: str, dtype: str, arguments: dict[str, Any]) -> Cost:
    """Of a launch, from its arguments."""
    if name == "rows_merge":
        read = arguments["partial"].numel()
        return Cost(6 * read, *[(read + arguments["merged"].numel()) * 4] * 2)
    numbers = arguments["x"].numel() * TENSORS[name]
    return Cost(6 * numbers, *[numbers * TYPES[dtype].itemsize] * 2)


def variants(target: str) -> Iterator[Entry]:
    """All of them for a target."""
    for dtype, last, adaptive in itertools.product(USUAL, (False, True), (False, True)):
        for name, launch in launched(target, dtype, channels_last=last, adaptive=adaptive).items():
            shape = launch.arguments["partial" if name == "rows_merge" else "x"].shape
            detail = ("channels last" if last else "channels first") + " adaptive" * adaptive
            yield Entry(
                name, dtype, detail, not adaptive, launch, "x".join(map(str, shape)),
                constant(cost(name, dtype, launch.arguments)),
            )  # fmt: skip
