"""The compilations of residual_ada_layer_norm's kernels that a launch may ask for, to be checked ahead of time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from ..ahead_of_time import costs
from ..ahead_of_time.catalogue import TYPES, USUAL, Entry, constant, tensor
from ..ahead_of_time.compile import TARGETS, Launch, launches
from .backward import residual_ada_layer_norm_backward
from .forward import residual_ada_layer_norm

DETAILS = ("gate, scale, shift", "weight, bias", "all with rows")


def launched(target: str, dtype: str, channels: int, detail: str) -> dict[str, Launch]:
    """The launches "forward" and "backward". detail: of DETAILS, which arguments there are; "rows": of their own."""
    x, row, vector = (tensor(dtype, *shape) for shape in ((8, 1024, channels), (8, 1, channels), (channels,)))
    rows = dict.fromkeys(("gate", "scale", "shift"), x if "rows" in detail else row)
    vectors = dict.fromkeys(("weight", "bias"), vector)
    given = vectors if detail == "weight, bias" else rows | (vectors if "all" in detail else {})
    (forward,) = launches(target, residual_ada_layer_norm, x, x, **given)
    (backward,) = launches(target, residual_ada_layer_norm_backward, x, x, x, x, **given)
    return {"forward": forward, "backward": backward}


def variants(target: str) -> Iterator[Entry]:
    """All of them for a target."""
    for dtype, channels, detail in itertools.product(USUAL, (320, 1152, 4096), DETAILS):
        sizes = (8, 1024, channels, TYPES[dtype].itemsize)
        options = {"gate": "weight, bias" not in detail, "rows_each": "rows" in detail}
        cost = {
            "forward": costs.residual_ada_layer_norm(*sizes, **options),
            "backward": costs.residual_ada_layer_norm_backward(*sizes, **options, device=TARGETS[target].device),
        }
        for name, launch in launched(target, dtype, channels, detail).items():
            usual, shape = channels == 1152 and "rows" not in detail, f"8x1024x{channels}"
            yield Entry(
                name, dtype, f"C={channels} {detail}", usual, launch, shape, constant(cost[name])
            )  # fmt: skip
