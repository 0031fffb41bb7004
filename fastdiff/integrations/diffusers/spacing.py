"""The training steps that diffusers' schedulers visit, by the names of their `timestep_spacing`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import unknown

SPACINGS = ("leading", "linspace", "trailing")


def training_steps(spacing: str, total: int, steps: int, offset: int, *, ends: bool) -> NDArray[np.int64]:
    """(steps,) decreasing training steps out of `total`.

    offset: added under "leading". ends: spaced as if there were one more, the last of which is left out, as the
    multistep schedulers do. Raises ValueError for another spacing, or for more steps than there are.
    """
    if spacing not in SPACINGS:
        raise unknown("timestep_spacing", spacing, SPACINGS)
    if not 1 <= steps <= total:
        raise ValueError(f"num_inference_steps must be between 1 and {total}, got {steps}")
    count = steps + ends
    if spacing == "linspace":
        found = np.linspace(0, total - 1, count).round()[::-1]
    elif spacing == "leading":
        found = (np.arange(count) * (total // count)).round()[::-1] + offset
    else:
        return np.arange(total, 0, -total / steps).round().astype(np.int64)[:steps] - 1
    return found[:steps].astype(np.int64)
