"""The compilations of conv2d's kernels that a launch may ask for, to be checked ahead of time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..ahead_of_time.catalogue import TYPES, USUAL, Entry, constant, tensor
from ..ahead_of_time.compile import Launch, launches
from ..ahead_of_time.costs import Cost
from .forward import conv2d


class Size(NamedTuple):
    """x: (N, C, H, W); outputs: channels of the result; taps: of a side of the kernel; more: channels of a second
    image; phases: four 2x2 convolutions in place of an upsampled image."""

    x: tuple[int, int, int, int]
    outputs: int
    taps: int = 3
    more: int = 0
    phases: bool = False


# By what they show. Of Stable Diffusion's U-Net and VAE; the last has channels that fill no step of the sum.
SIZES = {
    "narrow tile": Size((2, 320, 64, 64), 320),
    "wide tile": Size((1, 512, 64, 64), 512),
    "sum in parts": Size((2, 1280, 8, 8), 1280),
    "upsampled": Size((2, 640, 32, 32), 640, 2, phases=True),
    "1x1 of two images": Size((2, 640, 64, 64), 320, 1, more=320),
    "odd channels": Size((2, 640, 32, 32), 320, more=324),
}


def launched(target: str, dtype: str, size: Size) -> list[Launch]:
    """Its launches with bias, embedding, residual and SiLU behind the product; by phases with the bias alone."""
    (n, c, height, width), outputs, taps, more, phases = size
    last = dict(memory_format=torch.channels_last)
    x, bias = tensor(dtype, n, c, height, width, **last), tensor(dtype, outputs)
    weight = tensor(dtype, outputs * (4 if phases else 1), c + more, taps, taps, **last)
    if phases:
        return launches(target, conv2d, x, weight, bias, phases=True)
    return launches(
        target, conv2d, x, weight, bias, skip=tensor(dtype, n, more, height, width, **last) if more else None,
        padding=taps // 2, channel_bias=tensor(dtype, n, outputs), activation="silu",
        residual=tensor(dtype, n, outputs, height, width, **last),
    )  # fmt: skip


def cost(launch: Launch, dtype: str, size: Size) -> Cost:
    """Of a launch: the images and the weight once each, as if L2 kept what tiles share; the result and the residual;
    the parts of the sum in float32."""
    numbers = {name: launch.arguments[name].numel() for name in ("out", "partial")}
    parts = 4 * numbers["partial"] if launch.arguments["splits"] > 1 else 0
    of_result = numbers["out"] * (2 if launch.arguments["has_residual"] else 1)
    if launch.name == "conv2d_combine":
        bytes_ = parts + of_result * TYPES[dtype].itemsize
        return Cost(numbers["partial"], bytes_, bytes_)
    n, c, height, width = size.x
    channels, weight = c + size.more, launch.arguments["weight"].numel()
    flops = 2 * n * height * width * weight
    read = n * channels * height * width + weight
    bytes_ = (read + (0 if parts else of_result)) * TYPES[dtype].itemsize + parts
    return Cost(flops, bytes_, bytes_)


def variants(target: str) -> Iterator[Entry]:
    """All of them for a target. float32 is no candidate of a call: products are exact there, and slow."""
    for dtype, (detail, size) in itertools.product(USUAL, SIZES.items()):
        for launch in launched(target, dtype, size):
            name = "combine" if launch.name == "conv2d_combine" else "product"
            usual = dtype != "fp32" and detail != "odd channels"
            shape = f"{'x'.join(map(str, size.x))} to {size.outputs}"
            yield Entry(name, dtype, detail, usual, launch, shape, constant(cost(launch, dtype, size)))
