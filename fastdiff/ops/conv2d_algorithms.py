"""Which algorithm a convolution takes: by rule, or by measuring once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from fastdiff.runtime import environment

# "winograd": weights are transformed once, to four times their size. "winograd-on-the-fly": in every call, from a copy.
# "winograd-amx": in every call, from the weight itself, for AMX.
ALGORITHMS = ("winograd", "winograd-on-the-fly", "winograd-amx")
# Bytes of what is kept of a weight, in units of the weight's own.
MEMORY = {"winograd": 4.0, "winograd-on-the-fly": 1.0, "winograd-amx": 0.0}


class Problem(NamedTuple):
    """What decides: the sizes of a convolution, how often x is enlarged, threads and instruction set."""

    batch: int
    channels: int
    out_channels: int
    out_height: int
    out_width: int
    upsample: int
    threads: int
    isa: str

    @property
    def tiles(self) -> int:
        """Of 4x4 results, in all samples."""
        return self.batch * -(-self.out_height // 4) * -(-self.out_width // 4)

    @property
    def algorithms(self) -> tuple[str, ...]:
        """Those that the instruction set has."""
        return ALGORITHMS if self.isa == "amx" else ALGORITHMS[:2]

    def seconds(self, algorithm: str) -> float:
        """About how long it takes, fitted to two cores with AVX-512, AMX: the longer of products and reading weights;
        on the fly products and the transform; in stages the sum of their products and of what they write."""
        products = 36 * self.tiles * self.channels * self.out_channels
        weights = 36 * self.channels * self.out_channels
        cores = self.threads / 2
        multiplying = products / (_PRODUCTS_A_SECOND.get(self.isa, 1e10) * cores)
        if algorithm == "winograd-on-the-fly":
            return multiplying + weights / (1.7e10 * cores)
        if algorithm == "winograd-amx":
            rows = -(-self.tiles // 32) * 32
            images = 36 * self.tiles * (self.channels + self.out_channels)
            return (weights * (rows / 2.8e11 + 2.5e-10) + images * 2e-10) / cores
        return max(multiplying, 4 * weights / 2e10)


_PRODUCTS_A_SECOND = {"amx": 1.25e11, "avx512": 1.25e11, "avx2": 4e10}  # on two cores


class Choice(NamedTuple):
    """What was chosen for a problem. seconds: of each algorithm, measured or, by rule, estimated."""

    algorithm: str
    measured: bool
    seconds: dict[str, float]


_choices: dict[Problem, Choice] = {}


def choose(problem: Problem, run: Callable[[str], object] | None = None) -> tuple[str, bool]:
    """The algorithm for this, the same one every time; and whether it was measured just now.

    run: computes the convolution with an algorithm. Where FASTDIFF_MEASURE is 1 all are measured the first time that a
    problem is met; otherwise a rule decides.
    """
    found = _choices.get(problem)
    if found is not None:
        return found.algorithm, False
    measured = run is not None and environment.read("FASTDIFF_MEASURE", False)
    if run is not None and measured:
        seconds = {algorithm: _fastest(run, algorithm) for algorithm in problem.algorithms}
    else:
        seconds = {algorithm: problem.seconds(algorithm) for algorithm in problem.algorithms}
    found = _choices[problem] = Choice(min(seconds, key=lambda name: seconds[name]), measured, seconds)
    return found.algorithm, measured


def _fastest(run: Callable[[str], object], algorithm: str) -> float:
    """Of three runs, after one that prepares the weights."""
    run(algorithm)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        run(algorithm)
        times.append(time.perf_counter() - started)
    return min(times)


def choices() -> dict[Problem, Choice]:
    """Everything that was chosen so far, for reports."""
    return dict(_choices)


def explain() -> str:
    """The same as text, a line each."""
    lines = []
    for problem, choice in _choices.items():
        times = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in choice.seconds.items())
        lines.append(
            f"{problem.batch}x{problem.channels} to {problem.out_channels}x{problem.out_height}x{problem.out_width}, "
            f"{problem.threads} thread{'s' * (problem.threads != 1)}, {problem.isa}: {choice.algorithm} "
            f"({'measured' if choice.measured else 'estimated'}: {times})"
        )
    return "\n".join(lines)
