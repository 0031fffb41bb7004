"""The C++ engine: a Program bound once to its buffers, then one call a step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdiff.engine.inputs import Inputs
from fastdiff.program import KINDS, Program
from fastdiff.runtime.native import core

_PLANS = {torch.float32: core.PlanFloat32, torch.float64: core.PlanFloat64}
_NOISE = KINDS.index("noise")


def supports(program: Program, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the C++ engine cannot run this with states on a device, in a dtype, or None."""
    if device.type != "cpu":
        return f"the state is on {device}, and the C++ engine runs on the CPU"
    if dtype not in _PLANS:
        return f"the C++ engine takes float32 and float64 states, not {dtype}"
    return program.too_wide()


class CpuEngine:
    """buffers: as in ReferenceEngine. The kernel computes the noise where it needs it, or reads it from memory if it is
    given."""

    name = "cpu"

    def __init__(self, program: Program, buffers: list[Tensor], batch: int, inputs: Inputs) -> None:
        elements = math.prod(buffers[0].shape[1:])
        step = batch * elements * buffers[0].element_size()
        self._buffers = buffers  # the plan has their addresses
        self._plan = _PLANS[buffers[0].dtype](
            buffers=[b.data_ptr() for b in buffers],
            copies=[b.data_ptr() + step if len(b) > batch else 0 for b in buffers],
            batch=batch,
            elements=elements,
            seeds=inputs.counter.seeds,
            samples=inputs.counter.samples,
            num_threads=torch.get_num_threads(),
        )
        self._draw = inputs.draw
        self._index: dict[int, int] = {}  # of the instruction -> of the combine in the plan
        self._noises: dict[int, list[int]] = {}  # what a combine reads from `draw`
        add = self._plan.add
        for index, (slots, kinds, numbers, coefficients) in program.tables.items():
            self._index[index] = add(slots, kinds, numbers, coefficients)
            if inputs.draw is not None:
                self._noises[index] = [number for kind, number in zip(kinds, numbers) if kind == _NOISE]

    def combine(self, index: int, cond: Tensor | None, uncond: Tensor | None) -> bool:
        """Run the combine at `index` of the program on the network's outputs; whether all results are finite."""
        held = self._set_noises(index) if self._noises else None
        finite = self._plan.run(
            self._index[index], 0 if cond is None else cond.data_ptr(), 0 if uncond is None else uncond.data_ptr()
        )
        del held
        return finite

    def first_not_finite(self) -> int | None:
        """Nothing is deferred: every combine has said so itself."""
        return None

    def _set_noises(self, index: int) -> list[Tensor]:
        """Draw this combine's noises; they must be kept until it has run."""
        assert self._draw is not None
        held = []
        for number in self._noises[index]:
            held.append(self._draw(number))
            self._plan.set_noise(number, held[-1].data_ptr())
        return held
