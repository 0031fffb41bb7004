"""The engine on a GPU: each combine of a Program is one launch, of a CUDA kernel or of Triton's (see steps). What
distinguishes two Programs of the same shape lies in device memory, so that a captured graph serves both."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.engine import steps
from fastdiff.engine.inputs import Inputs
from fastdiff.engine.steps import Steps
from fastdiff.engine.timed_steps import quickest
from fastdiff.program import KINDS, Apply, Call, Combine, Program
from fastdiff.runtime.native import core

_BUFFER, _COND, _NOISE = (KINDS.index(kind) for kind in ("buffer", "cond", "noise"))
_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def supports(program: Program, x: Tensor) -> str | None:
    """Why this engine cannot run a Program from the state x, or None."""
    chosen, reason = steps.choose(x.device)
    if chosen is None:
        return reason
    if x.dtype not in _TYPES:
        return f"the kernels take float64, float32, float16 and bfloat16 states, not {x.dtype}"
    return program.too_wide()


class DeviceEngine:
    """buffers: (batch, ...) or (2 batch, ...), in the state's type. dtype: of the model's inputs and outputs.

    read: for each slot what the model reads: the buffer itself, or, where dtype is another, a copy that the combine
    writes beside it; then the buffer is written only if something else reads it.
    """

    name = "device"

    def __init__(
        self, program: Program, buffers: list[Tensor], dtype: torch.dtype, batch: int, inputs: Inputs, doubled: set[int]
    ) -> None:
        state, device, shape = buffers[0].dtype, buffers[0].device, buffers[0].shape[1:]
        self.batch, self.draw = batch, inputs.draw
        called = {i.input for i in program.calls}
        separate = dtype != state
        self.read = [
            torch.empty((batch * (2 if slot in doubled else 1), *shape), dtype=dtype, device=device)
            if separate and slot in called
            else buffer
            for slot, buffer in enumerate(buffers)
        ]
        tables = program.tables
        self._numbers = {index: number for number, index in enumerate(tables)}
        self._keys = torch.empty((batch, 2), dtype=torch.int64, device=device)
        self._broken = torch.zeros(len(tables), dtype=torch.int32, device=device)
        sizes = [len(kinds) * core.padded_outputs(len(slots)) for slots, kinds, _, _ in tables.values()]
        self._coefficients = torch.empty(sum(sizes), dtype=state, device=device)
        made, reason = steps.choose(device)
        if made is None:
            raise NotImplementedError(reason)
        made = quickest(made, state, dtype, batch, math.prod(shape), device)
        self._steps: Steps = made(state, dtype, batch, math.prod(shape), self._keys, self._broken)

        # Noise that is given, and results of functions, are copied to a place that a step can be told of beforehand.
        most = max((kinds.count(_NOISE) for _, kinds, _, _ in tables.values()), default=0) if inputs.draw else 0
        self._given = [torch.empty((batch, *shape), dtype=state, device=device) for _ in range(most)]
        self._draws: dict[int, list[int]] = {}
        self._applied = _combines_after_apply(program)
        self._result = torch.empty((batch, *shape) if self._applied else 0, dtype=state, device=device)

        kept, asked = _readers(program)
        for (index, (slots, kinds, numbers, _)), coefficients in zip(tables.items(), self._coefficients.split(sizes)):
            kinds, places = list(kinds), list(numbers)
            self._draws[index] = []
            for k, kind in enumerate(kinds):
                if kind == _BUFFER:
                    places[k] = buffers[numbers[k]].data_ptr()
                elif kind == _NOISE and inputs.draw is not None:
                    kinds[k], places[k] = _BUFFER, self._given[len(self._draws[index])].data_ptr()
                    self._draws[index].append(numbers[k])
                elif kind == _COND and index in self._applied:
                    kinds[k], places[k] = _BUFFER, self._result.data_ptr()
            outputs = []
            for slot in slots:
                halves = [part.data_ptr() for part in self.read[slot].split(batch)]
                if not separate:
                    outputs.append([halves[0], 0, halves[1] if len(halves) > 1 else 0])
                    continue
                wanted = halves if (index, slot) in asked else []
                whole = buffers[slot].data_ptr() if (index, slot) in kept else 0
                outputs.append([whole, *wanted, 0, 0][:3])
            self._steps.add(kinds, places, outputs, coefficients)
        self.load(program, inputs)

    def load(self, program: Program, inputs: Inputs) -> None:
        """Take the coefficients of a Program of the same shape, and other seeds."""
        flat: list[float] = []
        for slots, kinds, _, coefficients in program.tables.values():
            width = core.padded_outputs(len(slots))
            for k in range(len(kinds)):
                row = coefficients[k * len(slots) : (k + 1) * len(slots)]
                flat += [*row, *[0.0] * (width - len(slots))]
        self._coefficients.copy_(torch.tensor(flat, dtype=torch.float64, device="cpu"))
        keys = [[_signed(seed), _signed(sample)] for seed, sample in zip(inputs.counter.seeds, inputs.counter.samples)]
        self._keys.copy_(torch.tensor(keys, dtype=torch.int64, device="cpu"))
        self._broken.zero_()

    def combine(self, index: int, cond: Tensor | None, uncond: Tensor | None) -> bool:
        """Queue the combine at `index` of the program. True: what is not finite is found by first_not_finite."""
        for place, number in zip(self._given, self._draws[index]):
            assert self.draw is not None
            place.copy_(self.draw(number))
        if index in self._applied:
            assert cond is not None
            self._result.copy_(cond)
            cond = None
        self._steps.run(self._numbers[index], cond, uncond)
        return True

    def first_not_finite(self) -> int | None:
        """The first combine whose results are not all finite; waits for the device."""
        broken = self._broken.tolist()
        return next((index for index, number in self._numbers.items() if broken[number]), None)


def _signed(number: int) -> int:
    """The int64 of the same bits."""
    return number - (number >> 63 << 64)


def _combines_after_apply(program: Program) -> set[int]:
    """Those that read the result of a function, which has the state's type, as ("cond", 0)."""
    found, last = set(), None
    for index, instruction in enumerate(program.instructions):
        if isinstance(instruction, Combine):
            if isinstance(last, Apply):
                found.add(index)
        else:
            last = instruction
    return found


def _readers(program: Program) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """(index of a combine, slot) of the outputs that a combine, a function, a callback or the caller reads later, and
    of those that the model reads."""
    kept: set[tuple[int, int]] = set()
    asked: set[tuple[int, int]] = set()
    live, wanted = {program.result}, set[int]()
    states: dict[int, Sequence[int]] = {}
    for index, slot in program.states:
        states[index] = [*states.get(index, ()), slot]
    for index in reversed(range(len(program.instructions))):
        instruction = program.instructions[index]
        live |= set(states.get(index, ()))
        if isinstance(instruction, Combine):
            slots = {output.slot for output in instruction.outputs}
            kept |= {(index, slot) for slot in slots & live}
            asked |= {(index, slot) for slot in slots & wanted}
            live, wanted = live - slots, wanted - slots
            live |= {number for kind, number in instruction.sources() if kind == "buffer"}
        elif isinstance(instruction, Call):
            live.discard(instruction.variance)  # type: ignore[arg-type]
            wanted.add(instruction.input)
        else:
            live |= set(instruction.inputs)
    return kept, asked
