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


@functools.cache
def _of_gpu(index: int) -> Device:
    found = torch.cuda.get_device_properties(index)
    by_capability = {9: "sm_90", 10: "sm_100", 11: "sm_100"}
    architecture = "gfx942" if torch.version.hip else by_capability.get(found.major, "sm_80")
    exact = found.gcnArchName.split(":")[0] if torch.version.hip else f"sm_{found.major}{found.minor}"
    return Device(architecture, found.multi_processor_count, found.L2_cache_size, exact)
