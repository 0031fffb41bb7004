"""Which calls of a run should be full, found by a run in which all are: where the deep features change fastest."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.arguments import described
from fastdiff.compiler.branches import branches_of
from fastdiff.errors import expect
from fastdiff.runtime.reuse import Caching

_NUMBERS = 1 << 16  # of each call's deep features that are compared, spread over them
_FEW = 8  # samples


class Recorder:
    """The deep features of every call, by branch, some of their numbers each."""

    def __init__(self) -> None:
        self._calls: list[list[Tensor]] = []
        self._of: WeakKeyDictionary[Any, list[Tensor]] = WeakKeyDictionary()
        self.samples = 0

    def add(self, branch: Any, deep: Tensor) -> None:
        """Of the next call of the branch. Waits for no GPU."""
        if branch not in self._of:
            self._of[branch] = []
            self._calls.append(self._of[branch])
            self.samples += len(deep)
        flat = deep.detach().reshape(-1)
        self._of[branch].append(flat[:: math.ceil(flat.numel() / _NUMBERS)].float().clone())

    def changes(self) -> Tensor:
        """(calls, calls): the change of the features from call i to call j as a share of those of j, in RMS over all
        branches. Raises ValueError for fewer than three calls, or runs of different lengths."""
        lengths = sorted({len(calls) for calls in self._calls})
        expect(len(lengths) == 1, f"all runs of a calibration must have as many calls, got {lengths or 'no call'}")
        expect(lengths[0] >= 3, f"a calibration needs runs of at least 3 calls, got {lengths[0]}")
        squares = []
        for calls in self._calls:
            rows = torch.stack(calls).double()
            size = rows.square().sum(1)
            products = rows @ rows.T
            squares.append((size[:, None] + size - 2 * products).clamp(min=0) / size)
        return torch.stack(squares).mean(0).sqrt().cpu()


def calibrate(
    model: Any, run: Callable[[], object], *, full: int | None = None, threshold: float | None = None
) -> Caching:
    """Find which calls of a run should be full, and let the model follow that from here on. Returns the rule.

    model: a module or a pipeline of diffusers after `fastdiff.optimize(model, reuse=...)`, whose kind and depth stay.
    run: makes one run or several of the length that is meant, such as `lambda: pipe(prompts, num_inference_steps=30)`;
    in them all calls are full. full: how many calls are to be full: those that leave the least change of the deep
    features in the others, in squares (found exactly). threshold: instead, a call is full where they would have changed
    by that share since the last full one, in RMS. The rule is for runs of this length; calls beyond it reuse.

    Raises TypeError for a model that reuses nothing, ValueError unless exactly one of `full` and `threshold` is given,
    for fewer than three calls, for runs of different lengths and where nothing was recorded. Warns where there were
    fewer than 8 samples.
    """
    keepers = branches_of(model)
    if not keepers:
        raise TypeError(f"calibrate() takes what fastdiff.optimize(model, reuse=...) made, got {described(model)}")
    expect((full is None) != (threshold is None), "calibrate() takes either full or a threshold")
    if threshold is not None:
        expect(arguments.number("threshold", threshold) > 0, f"threshold must be positive, got {threshold!r}")
    count = None if full is None else arguments.whole("full", full, 1)
    recorder = Recorder()
    for each in keepers:
        each.forget()
        each.recorder = recorder
    try:
        run()
    finally:
        for each in keepers:
            each.recorder = None
            each.forget()
    changes = recorder.changes()
    if recorder.samples < _FEW:
        warnings.warn(
            f"fastdiff: the calibration saw {recorder.samples} samples; fewer than {_FEW} say little of others",
            stacklevel=2,
        )
    if count is None:
        assert threshold is not None
        numbers = by_threshold(changes, threshold)
    else:
        expect(count <= len(changes), f"full must be at most the {len(changes)} calls of a run, got {count}")
        numbers = by_count(changes, count)
    rule = replace(keepers[0].rule, every=None, threshold=None, full=numbers)
    for each in keepers:
        each.rule = rule
    return rule


def by_threshold(changes: Tensor, threshold: float) -> tuple[int, ...]:
    """A full call where the features have changed by so much since the last one."""
    found = [0]
    for call in range(1, len(changes)):
        if float(changes[found[-1], call]) >= threshold:
            found.append(call)
    return tuple(found)


def by_count(changes: Tensor, count: int) -> tuple[int, ...]:
    """So many full calls, with the least sum of squares of what has changed in the others: dynamic programming."""
    calls = len(changes)
    squares = changes.square()
    # cost[i][j]: of calls i + 1 to j - 1, if i is full and j the next that is
    cost = [[float(squares[i, i + 1 : j].sum()) for j in range(calls + 1)] for i in range(calls)]
    best = [cost[i][calls] for i in range(calls)]  # from i on, with one full call
    chosen: list[list[int]] = [[i] for i in range(calls)]
    for _ in range(count - 1):
        following = [
            min(((cost[i][j] + best[j], j) for j in range(i + 1, calls)), default=(math.inf, calls))
            for i in range(calls)
        ]
        chosen = [[i, *chosen[j]] if j < calls else [i] for i, (_, j) in enumerate(following)]
        best = [sum_ for sum_, _ in following]
    return tuple(chosen[0])
