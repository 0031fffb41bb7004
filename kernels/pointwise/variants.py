"""The compilations of the kernels between products and norms that a launch may ask for, to be checked ahead of time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from ..ahead_of_time.catalogue import TYPES, USUAL, Entry, constant, tensor
from ..ahead_of_time.compile import Launch, launches
from ..ahead_of_time.costs import Cost
from .forward import add_bias, gated
from .upsampled import interleave, phases

# A level of Stable Diffusion's U-Net; the hidden tokens of its gated units; an upsampled image, and the weights for it.
MAP, TOKENS, IMAGE = (2, 320, 64, 64), (8192, 2560), (2, 640, 32, 32)
ACTIVATIONS = ("gelu", "gelu_tanh", "silu")


def launched(target: str, dtype: str, *, channels_last: bool) -> dict[str, Launch]:
    """A launch of each kernel by its name. channels_last: the map, and the weights; an upsampled image always is."""
    layout = dict(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    x, vector, row = tensor(dtype, *MAP, **layout), tensor(dtype, MAP[1]), tensor(dtype, *MAP[:2])
    n, channels, height, width = IMAGE
    y = tensor(dtype, n, 4 * channels, height + 1, width + 1, memory_format=torch.channels_last)
    weight = tensor(dtype, channels, channels, 3, 3, **layout)
    return {
        "add_bias": _one(launches(target, add_bias, x, vector, row, x, "silu")),
        "phases": _one(launches(target, phases, weight)),
        "interleave": _one(launches(target, interleave, y, tensor(dtype, channels))),
    }


def unit(target: str, dtype: str, activation: str) -> Launch:
    """The launch of a gated unit."""
    return _one(launches(target, gated, tensor(dtype, *TOKENS), activation))


def cost(launch: Launch, dtype: str) -> Cost:
    """What is read and written, once; of vectors nothing."""
    given, name = launch.arguments, launch.name
    read = {"interleave": "y", "phases": "weight"}.get(name, "x")
    numbers = given[read].numel() * (2 if given.get("has_residual") else 1) + given["out"].numel()
    return Cost(4 * given["out"].numel(), *[numbers * TYPES[dtype].itemsize] * 2)


def variants(target: str) -> Iterator[Entry]:
    """All of them for a target."""
    for dtype, last in itertools.product(USUAL, (True, False)):
        for name, launch in launched(target, dtype, channels_last=last).items():
            if name == "interleave" and not last:
                continue  # the same
            shape = launch.arguments["weight" if name == "phases" else "out"].shape
            detail = "channels last" if last else "channels first"
            yield _entry(name, dtype, detail, last, launch, tuple(shape))
    for dtype, activation in itertools.product(USUAL, ACTIVATIONS):
        launch = unit(target, dtype, activation)
        yield _entry("gated", dtype, activation, activation == "gelu", launch, TOKENS)


def _entry(name: str, dtype: str, detail: str, usual: bool, launch: Launch, shape: tuple[int, ...]) -> Entry:
    return Entry(name, dtype, detail, usual, launch, "x".join(map(str, shape)), constant(cost(launch, dtype)))


def _one(found: list[Launch]) -> Launch:
    (launch,) = found
    return launch
