"""The machine and the versions that a result belongs to."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any


def describe() -> dict[str, Any]:
    """Processor, threads, instruction set and versions, and when."""
    from fastdiff.cli.info import collect

    found = collect()
    keys = ("fastdiff", "torch", "numpy", "python", "system", "processor", "threads", "instruction_set")
    return {**{key: found[key] for key in keys}, "date": datetime.now(timezone.utc).isoformat(timespec="minutes")}
