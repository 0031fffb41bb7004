"""The weights of which a graph keeps something in another form, and how much of them each call compares.

A change through `.data` that the sample of `runtime.contents` misses is found by comparing all of the memory. Each call
reads a part of it, and all of it after a pause: whoever edits weights takes time, while the steps of a sampling loop
follow each other. Of weights on a GPU the samples are compared, in a pause and every 64 calls, without waiting for the
answer. See docs/notes/changes.md.
"""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor, fx

from fastdiff.compiler.convolution import Conv2d
from fastdiff.compiler.passes.invariants import Kept
from fastdiff.compiler.precision import LowLinear
from fastdiff.runtime import contents, graphs

_SHARE = 1 / 64  # of the memory, in every call
_LEAST = 512 << 10  # bytes
_EVERY, _PAUSE = 64, 0.1  # calls, seconds: between two comparisons on a GPU
_IN_A_PAUSE = 5e8  # bytes a second of it: at 10 GB/s a twentieth of the pause


class Stored:
    """Called with a graph's inputs before, and `done` after every call."""

    def __init__(self, module: fx.GraphModule) -> None:
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        used: list[Any] = []
        for node in module.graph.nodes:
            part = module.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(part, (Conv2d, LowLinear)):
                used.append(node.args[1])
            elif isinstance(part, Kept):
                used += node.args[part.count :]
        self._places = [place for place, node in enumerate(placeholders) if node in used]
        self._ended: float | None = None
        self._watch, self._calls = contents.Watch(), 0

    def __bool__(self) -> bool:
        return bool(self._places)

    def __call__(self, inputs: tuple[Any, ...]) -> None:
        """Forget what was made of weights that differ."""
        if graphs.capturing():
            return
        weights = self.weights(inputs)
        total = sum(weight.nbytes for weight in weights) or 1
        pause = 0.0 if self._ended is None else time.perf_counter() - self._ended
        contents.look(weights, max(_SHARE, _LEAST / total, pause * _IN_A_PAUSE / total))
        if weights[0].is_cpu:
            return
        self._watch.answered()
        self._calls += 1
        if pause > _PAUSE or self._calls % _EVERY == 0:
            self._watch.ask(weights)

    def weights(self, inputs: tuple[Any, ...]) -> list[Tensor]:
        """Those among the inputs."""
        return [inputs[place] for place in self._places]

    def done(self) -> None:
        """A pause begins."""
        self._ended = time.perf_counter()
