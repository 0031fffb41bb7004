"""The reference engine: a Program's combines in plain PyTorch, on any device and dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.noise import NoiseFunction
from fastdiff.program import Combine, Program, Source


class ReferenceEngine:
    """buffers: one a slot of the program, (B, ...) or (2B, ...) with a second copy for guided calls (see loop.py)."""

    name = "reference"

    def __init__(self, program: Program, buffers: list[Tensor], batch: int, draw: NoiseFunction) -> None:
        self.instructions, self.buffers, self.batch, self.draw = program.instructions, buffers, batch, draw

    def combine(self, index: int, cond: Tensor | None, uncond: Tensor | None) -> bool:
        """Run the combine at `index` of the program on the network's outputs; whether all results are finite."""
        instruction = self.instructions[index]
        assert isinstance(instruction, Combine)
        values: dict[Source, Any] = {("cond", 0): cond, ("uncond", 0): uncond}
        sources = instruction.sources()
        for kind, number in sources:
            if kind == "buffer":
                values[kind, number] = self.buffers[number][: self.batch]
            elif kind == "noise":
                values[kind, number] = self.draw(number)
        results: list[Any] = []
        for output in instruction.outputs:
            terms = dict(output.terms)  # summed in the order of all sources, as the kernel does: the same bits
            results.append(sum(terms[source] * values[source] for source in sources if source in terms))
        for output, result in zip(instruction.outputs, results):
            buffer = self.buffers[output.slot]
            buffer[: self.batch] = result
            if len(buffer) > self.batch:
                buffer[self.batch :] = result
        return all(bool(torch.isfinite(result).all()) for result in results)
