"""The compilations of ada_layer_norm's kernels that a launch may ask for, to be checked ahead of time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from ..ahead_of_time import costs
from ..ahead_of_time.catalogue import TYPES, USUAL, Entry, constant, tensor
from ..ahead_of_time.compile import TARGETS, Launch, launches
from .backward import ada_layer_norm_backward
from .forward import ada_layer_norm


def launched(target: str, dtype: str, channels: int, *, rows: bool = False) -> dict[str, Launch]:
    """The launches "forward" and "backward". rows: scale has rows of its own."""
    x, row, vector = (tensor(dtype, *shape) for shape in ((8, 1024, channels), (8, 1, channels), (channels,)))
    arguments = (x, x if rows else row, row)
    (forward,) = launches(target, ada_layer_norm, *arguments, weight=vector, bias=vector)
    (backward,) = launches(target, ada_layer_norm_backward, x, *arguments, weight=vector, bias=vector)
    return {"forward": forward, "backward": backward}


def variants(target: str) -> Iterator[Entry]:
    """All of them for a target."""
    for dtype, channels in itertools.product(USUAL, (320, 1152, 4096)):
        sizes = (8, 1024, channels, TYPES[dtype].itemsize)
        cost = {
            "forward": costs.ada_layer_norm(*sizes),
            "backward": costs.ada_layer_norm_backward(*sizes, device=TARGETS[target].device),
        }
        for name, launch in launched(target, dtype, channels).items():
            usual, shape = channels == 1152, f"8x1024x{channels}"
            yield Entry(name, dtype, f"C={channels}", usual, launch, shape, constant(cost[name]))
