"""What the choice of a launch needs to know of a device."""

from __future__ import annotations

import torch


def architecture(device: torch.device) -> str:
    """Which of ahead_of_time.TARGETS has the tables that serve a device; sm_80 for Triton's interpreter."""
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip:
        return "gfx942"
    major = torch.cuda.get_device_capability(device)[0]
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_80")


def processors(device: torch.device) -> int:
    """Multiprocessors of a device; 1 for Triton's interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def second_cache(device: torch.device) -> int:
    """Bytes of a device's second cache; more than any tensor has for Triton's interpreter."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 1 << 62
