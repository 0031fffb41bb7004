"""What lower precision does to a model: the error of each layer on its own inputs, and how far results may be off."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fastdiff.compiler.capture import FastGraph
from fastdiff.compiler.differences import Difference, low_difference
from fastdiff.compiler.lockstep import Walk
from fastdiff.compiler.nodes import Node
from fastdiff.compiler.passes.invariants import Kept
from fastdiff.compiler.precision import LowLinear, layers

# Times the error of the original under autocast to bfloat16. The largest of a row of normal numbers is at three to four
# standard deviations: an 8-bit step is then nine times bfloat16's mean rounding, and more where the largest is larger.
_TIMES = {"bf16": 1.0, "int8": 16.0}


@dataclass(frozen=True)
class LayerError:
    """Of a layer in lower precision: the RMS of its error, in units of the RMS of its result, on its own inputs."""

    name: str
    precision: str
    rms: float


def precision(graphs: Iterable[FastGraph]) -> str | None:
    """The lowest precision of a layer of these graphs; None where all are in float32."""
    words = {layer.precision for graph in graphs for layer in layers(graph.module)}
    return "int8" if "int8" in words else next(iter(words), None)


def ranked(graphs: Iterable[tuple[FastGraph, tuple[Any, ...]]]) -> list[LayerError]:
    """The layers of graphs that ran with these inputs, the largest error first."""
    found: dict[str, LayerError] = {}
    for graph, inputs in graphs:
        for error in _measured(graph.module, inputs):  # of a layer that is called several times the largest
            if error.name not in found or error.rms > found[error.name].rms:
                found[error.name] = error
    return sorted(found.values(), key=lambda error: -error.rms)


def differences(
    ours: list[Tensor], expected: list[Tensor], again: Callable[[], list[Tensor]], word: str
) -> list[Difference]:
    """Of the results from the original's in float32. again: the original's results once more, here under autocast.

    Raises RuntimeError or TypeError where the original does not run under autocast.
    """
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = again()
    return [
        low_difference("output" if len(ours) == 1 else f"output {number}", *each, _TIMES[word])
        for number, each in enumerate(zip(ours, theirs, expected, strict=True))
    ]


def _measured(module: fx.GraphModule, inputs: tuple[Any, ...]) -> list[LayerError]:
    walk = _Measured(module, inputs, set())
    for _ in module.graph.nodes:
        walk.step()
    return walk.errors


class _Measured(Walk):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.errors: list[LayerError] = []

    def _run(self, node: Node) -> Any:
        value = super()._run(node)
        part = self.module.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(part, (Kept, LowLinear)):
            return value
        inputs = fx.map_arg(node.args, lambda each: self._values[each])
        if isinstance(part, Kept):
            self.errors += _measured(part.module, inputs)
        else:
            exact = part.exactly(*inputs)
            unit = float(exact.square().mean().sqrt()) or 1.0
            rms = float((value.double() - exact).square().mean().sqrt()) / unit
            self.errors.append(LayerError(part.name, part.precision, rms))
        return value
