"""Side-by-side timing: interleaved rounds in one process, medians with their spread, and the machine's own limits."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Timing:
    """Seconds a call. median, and the 20th and 80th percentile of the rounds."""

    median: float
    p20: float
    p80: float


def interleave(
    functions: dict[str, Callable[[], object]], *, rounds: int = 30, min_seconds: float = 0.002, warmup: int = 3
) -> dict[str, Timing]:
    """Time functions against each other, one after the other in every round.

    A round calls each so often that it takes about `min_seconds`, measured once before. Compare medians of one call of
    this only: the machine's speed drifts.
    """
    repeats = {}
    for name, function in functions.items():
        for _ in range(warmup):
            function()
        started = time.perf_counter()
        function()
        repeats[name] = max(1, round(min_seconds / max(time.perf_counter() - started, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            for _ in range(repeats[name]):
                function()
            seconds[name].append((time.perf_counter() - started) / repeats[name])
    return {name: Timing(*np.percentile(s, (50, 20, 80)).tolist()) for name, s in seconds.items()}


def copy_bandwidth(size: int) -> float:
    """Bytes a second, read and written, that a torch copy of `size` bytes moves on this machine now."""
    source = torch.ones(size // 4)
    target = torch.empty_like(source)
    return 2 * size / interleave({"copy": lambda: target.copy_(source)}, rounds=15)["copy"].median


@functools.cache
def matmul_rate(dtype: torch.dtype, size: int = 1024) -> float:
    """Multiplications and additions a second in torch's product of square matrices here, measured once a process."""
    a, b = torch.randn(2, size, size).to(dtype)
    return 2 * size**3 / interleave({"product": lambda: a @ b}, rounds=15)["product"].median
