"""Timing: of a block, by events on a GPU and by the clock on the CPU; side by side in interleaved rounds, medians with
their spread; and the machine's own limits."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Timing:
    """Seconds a call. median, and the 20th and 80th percentile of the rounds."""

    median: float
    p20: float
    p80: float


@dataclass
class Elapsed:
    """Seconds of a block, once it has ended."""

    seconds: float = 0.0


@contextmanager
def timed(device: torch.device | str = "cpu") -> Iterator[Elapsed]:
    """How long the block takes: on a CUDA device between two events of its current stream, after all work before it and
    with all that the block launched; else by the clock. An error in the block leaves the time at 0."""
    where, elapsed = torch.device(device), Elapsed()
    if where.type != "cuda":
        started = time.perf_counter()
        yield elapsed
        elapsed.seconds = time.perf_counter() - started
        return
    stream = torch.cuda.current_stream(where)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    stream.synchronize()
    first.record(stream)
    yield elapsed
    last.record(stream)
    last.synchronize()
    elapsed.seconds = first.elapsed_time(last) / 1e3  # it gives milliseconds


def interleave(
    functions: dict[str, Callable[[], object]],
    *,
    rounds: int = 30,
    min_seconds: float = 0.002,
    warmup: int = 3,
    device: torch.device | str = "cpu",
) -> dict[str, Timing]:
    """Time functions against each other, one after the other in every round. device: where they compute.

    A round calls each so often that it takes about `min_seconds`, measured once before. Compare medians of one call of
    this only: the machine's speed drifts.
    """
    repeats = {}
    for name, function in functions.items():
        for _ in range(warmup):
            function()
        with timed(device) as once:
            function()
        repeats[name] = max(1, round(min_seconds / max(once.seconds, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            with timed(device) as elapsed:
                for _ in range(repeats[name]):
                    function()
            seconds[name].append(elapsed.seconds / repeats[name])
    return {name: spread(each) for name, each in seconds.items()}


def spread(seconds: list[float]) -> Timing:
    """Of the seconds of several rounds."""
    return Timing(*np.percentile(seconds, (50, 20, 80)).tolist())


def copy_bandwidth(size: int, device: torch.device | str = "cpu") -> float:
    """Bytes a second, read and written, that a torch copy of `size` bytes moves on this device now."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / interleave({"copy": lambda: target.copy_(source)}, rounds=15, device=device)["copy"].median


@functools.cache
def matmul_rate(dtype: torch.dtype, size: int = 1024, device: str = "cpu") -> float:
    """Multiplications and additions a second in torch's product of square matrices here, measured once a process."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    return 2 * size**3 / interleave({"product": lambda: a @ b}, rounds=15, device=device)["product"].median
