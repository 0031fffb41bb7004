"""How much of the machine others use while something is timed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
SHORTEST = 0.05  # seconds; the kernel counts in hundredths, which says nothing of less


@dataclass
class Load:
    """others: cores that others used on average, None where that cannot be known or the time was too short."""

    others: float | None = None


@contextmanager
def watched() -> Iterator[Load]:
    """What others use during the block: on Linux the machine's busy time, that of other virtual machines included,
    without this process's own."""
    found, before, started = Load(), _busy(), time.perf_counter()
    own = time.process_time()
    yield found
    after, seconds = _busy(), time.perf_counter() - started
    if before is not None and after is not None and seconds >= SHORTEST:
        found.others = max(0.0, (after - before - (time.process_time() - own)) / seconds)


def _busy() -> float | None:
    """Seconds that all cores together have been busy, or were taken by other virtual machines."""
    try:
        words = STAT.read_text(encoding="ascii").split("\n", 1)[0].split()
        user, nice, system, _, _, irq, softirq, steal = map(int, words[1:9])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None


def is_busy(others: float | None) -> bool:
    """Whether others used so much that a time is not to be trusted: a quarter of a core, or of all of them if fewer
    than a tenth."""
    return others is not None and others > max(0.25, 0.1 * (os.cpu_count() or 1))
