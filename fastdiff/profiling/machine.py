"""The machine and the versions that a result belongs to."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import torch


def describe(device: torch.device) -> dict[str, Any]:
    """Processor, threads, instruction set and versions, the device that computed, and when."""
    from fastdiff.cli.info import collect

    found = collect()
    keys = ("fastdiff", "torch", "numpy", "python", "system", "processor", "threads", "instruction_set")
    name = f"{torch.cuda.get_device_name(device)} ({device})" if device.type == "cuda" else str(device)
    return {
        **{key: found[key] for key in keys},
        "device": name,
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
    }
