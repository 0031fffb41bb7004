"""The reference engine: a Program's combines in plain PyTorch, on any device and dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.engine.inputs import Inputs
from fastdiff.program import Combine, Program, Source


class ReferenceEngine:
    """buffers: one a slot of the program, (B, ...) or (2B, ...) with a second copy for guided calls (see loop.py).

    deferred: results are not looked at until `first_not_finite`, so that a device is not waited for at every step.
    """

    name = "reference"

    def __init__(self, program: Program, buffers: list[Tensor], batch: int, inputs: Inputs, *, deferred: bool) -> None:
        self.instructions, self.buffers, self.batch, self.inputs = program.instructions, buffers, batch, inputs
        self.deferred = deferred
        self.finite: list[tuple[int, Tensor]] = []  # instruction, whether its results are

    def combine(self, index: int, cond: Tensor | None, uncond: Tensor | None) -> bool:
        """Run the combine at `index` of the program on the network's outputs; whether all results are finite, as far as
        that is known yet."""
        instruction = self.instructions[index]
        assert isinstance(instruction, Combine)
        values: dict[Source, Any] = {("cond", 0): cond, ("uncond", 0): uncond}
        sources = instruction.sources()
        for kind, number in sources:
            if kind == "buffer":
                values[kind, number] = self.buffers[number][: self.batch]
            elif kind == "noise":
                like = self.buffers[0][: self.batch]
                values[kind, number] = self.inputs.noise(number, like.shape, like.dtype, like.device)
        results: list[Any] = []
        for output in instruction.outputs:
            terms = dict(output.terms)  # summed in the order of all sources, as the kernel does: the same bits
            results.append(sum(terms[source] * values[source] for source in sources if source in terms))
        for output, result in zip(instruction.outputs, results):
            buffer = self.buffers[output.slot]
            buffer[: self.batch] = result
            if len(buffer) > self.batch:
                buffer[self.batch :] = result
        finite = torch.stack([torch.isfinite(result).all() for result in results]).all()
        if not self.deferred:
            return bool(finite)
        self.finite.append((index, finite))
        return True

    def first_not_finite(self) -> int | None:
        """The first deferred combine whose results are not all finite."""
        if not self.finite:
            return None
        flags = torch.stack([flag for _, flag in self.finite]).tolist()
        return next((index for (index, _), flag in zip(self.finite, flags) if not flag), None)
