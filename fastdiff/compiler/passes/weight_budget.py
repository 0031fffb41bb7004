"""What convolutions keep of their weights, over the whole model: where transforming all of them once would take more
than FASTDIFF_WEIGHT_BUDGET times the weights (1.5 if it is not set), those that gain least are transformed in every
call. Of each captured graph by itself: a second one, for other sizes, may keep other forms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from fastdiff.compiler.convolution import Conv2d
from fastdiff.compiler.nodes import shape, value
from fastdiff.compiler.report import Notes
from fastdiff.ops.conv2d_algorithms import MEMORY, Problem
from fastdiff.runtime import environment
from fastdiff.runtime.native import core

NAME = "weight_budget"


def apply(graph: fx.Graph, notes: Notes) -> None:
    """Set the algorithm of the convolutions that must not keep transformed weights."""
    owner = graph.owning_module
    assert owner is not None
    kept: list[tuple[float, float, Conv2d, Problem, str]] = []  # seconds gained a number; numbers spared; ...
    weights = numbers = 0.0
    for node in graph.nodes:
        module = owner.get_submodule(str(node.target)) if node.op == "call_module" else None
        problem = _problem(module, node) if isinstance(module, Conv2d) else None
        if problem is None or not isinstance(module, Conv2d):
            continue
        size = 9 * problem.channels * problem.out_channels
        chosen = _fastest(problem, problem.algorithms)
        weights += size
        numbers += size * MEMORY[chosen]
        other = _fastest(problem, (name for name in problem.algorithms if MEMORY[name] <= 1))
        if other != chosen:
            spared = size * (MEMORY[chosen] - MEMORY[other])
            kept.append(((problem.seconds(other) - problem.seconds(chosen)) / spared, spared, module, problem, other))
    budget = max(1.0, environment.read("FASTDIFF_WEIGHT_BUDGET", 1.5))  # 1: the least that all algorithms need
    for _, spared, module, problem, other in sorted(kept, key=lambda each: each[0]):
        if numbers <= budget * weights:
            return
        module.algorithm = problem.isa, other
        numbers -= spared
        notes.matches += 1


def _fastest(problem: Problem, algorithms: Iterable[str]) -> str:
    return min(algorithms, key=problem.seconds)


def _problem(module: Conv2d, node: Any) -> Problem | None:
    """What the kernel would be asked to do, with the sizes of the capture; None where torch would compute."""
    x, weight, *_ = node.args
    if not isinstance(value(x), Tensor) or not value(x).is_cpu or value(x).dtype is not torch.float32:
        return None
    batch, channels, height, width = map(_known, shape(x))
    out_channels, _, *kernel = shape(weight)
    if kernel != [3, 3] or module.stride != 1 or channels < 64 or out_channels < 32:
        return None
    down, across = (module.upsample * size + 2 * module.padding - 2 for size in (height, width))
    return Problem(batch, channels, out_channels, down, across, module.upsample, torch.get_num_threads(), core.isa())


def _known(size: Any) -> int:
    """A size, or for a symbol the one that it had at the capture, of which nothing is then assumed."""
    return size if isinstance(size, int) else int(size.node.hint)
