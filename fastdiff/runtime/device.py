"""What the choice of a launch needs to know of a device."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch


class Device(NamedTuple):
    """architecture: whose tables serve the device, one of ahead_of_time.TARGETS; multiprocessors (SMs, compute units);
    bytes of the L2 cache; exact: the device's own architecture, as sm_86 or gfx1100, "" where there is no device."""

    architecture: str
    multiprocessors: int
    l2_bytes: int
    exact: str = ""


# Stands for a GPU that is not there: in Triton's interpreter, one multiprocessor with an L2 that holds any tensor.
ABSENT = Device("sm_80", 1, 1 << 62)


def properties(device: torch.device) -> Device:
    """Of a CUDA device; ABSENT for others."""
    return _of_gpu(device.index) if device.type == "cuda" else ABSENT


def tables_of(exact: str) -> str:
    """Whose tables serve an architecture, as those of sm_100 do sm_103."""
    if exact.startswith("gfx"):
        return "gfx942"
    by_capability = {"sm_9": "sm_90", "sm_10": "sm_100", "sm_11": "sm_100"}
    return by_capability.get(exact[:-1], "sm_80")


@functools.cache
def _of_gpu(index: int) -> Device:
    found = torch.cuda.get_device_properties(index)
    exact = found.gcnArchName.split(":")[0] if torch.version.hip else f"sm_{found.major}{found.minor}"
    return Device(tables_of(exact), found.multi_processor_count, found.L2_cache_size, exact)
