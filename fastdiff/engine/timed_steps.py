"""Which of the two kernels of a solver's step runs on a GPU where both are there. They have the same bits, so that time
alone decides: fastdiff.runtime.tuning takes it once for the sizes of a state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastdiff.engine.steps import NativeSteps, Steps, TritonSteps
from fastdiff.program import KINDS
from fastdiff.runtime import triton, tuning
from fastdiff.runtime.candidates import Candidate
from fastdiff.runtime.device import properties
from fastdiff.runtime.native import core

BODIES: dict[str, type[NativeSteps] | type[TritonSteps]] = {"cuda": NativeSteps, "triton": TritonSteps}

_settled: dict[tuple[object, ...], type[NativeSteps] | type[TritonSteps]] = {}


def quickest(
    made: type[NativeSteps] | type[TritonSteps], state: torch.dtype, model: torch.dtype, batch: int, elements: int,
    device: torch.device,
) -> type[NativeSteps] | type[TritonSteps]:  # fmt: skip
    """`made`, or, where that is CUDA's and Triton's is the quicker one, Triton's. The others: as of DeviceEngine."""
    if made is not BODIES["cuda"] or not batch * elements or device.type != tuning.tuner.timer.device_type:
        return made
    key = device, state, model, batch, elements
    if key in _settled:
        return _settled[key]
    if (reason := triton.unavailable()) is not None:
        bodies, absent = {"cuda": made}, {"triton": reason}
    else:
        bodies, absent = BODIES, {}
    step = _Step(state, model, batch, elements, device)
    title = f"solver's step {batch}x{elements} {state} for {model}".replace("torch.", "")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    found = tuning.tuner.decide(
        tuning.Problem(
            key=f"{name} {properties(device).exact} {tuning.versions()} {title}", title=title, device=device,
            candidates=[Candidate(name, step.by(body)) for name, body in bodies.items()], make=lambda: None,
            absent=absent,
        )
    )  # fmt: skip
    if found.settled:
        _settled[key] = bodies[found.name]
    return bodies[found.name]


def forget() -> None:
    """Drop all decisions, for tests."""
    _settled.clear()


class _Step:
    """A step as most are: of the state and the two outputs of the network to the state, and to what the network reads
    next. Its tensors are made when it is first run."""

    def __init__(self, state: torch.dtype, model: torch.dtype, batch: int, elements: int, device: torch.device) -> None:
        self._state, self._model, self._device = state, model, device
        self._batch, self._elements = batch, elements
        self._made: dict[type, tuple[Steps, list[Tensor]]] = {}
        self._read: list[Tensor] = []

    def by(self, body: type[NativeSteps] | type[TritonSteps]) -> Callable[[None], list[Tensor]]:
        """A function that queues the step and gives what it writes."""

        def run(_: None) -> list[Tensor]:
            if body not in self._made:
                self._made[body] = self._prepared(body)
            steps, results = self._made[body]
            steps.run(0, *self._read[1:3])
            return results

        return run

    def _prepared(self, body: type[NativeSteps] | type[TritonSteps]) -> tuple[Steps, list[Tensor]]:
        shape, device = (self._batch, self._elements), self._device
        if not self._read:
            generator = torch.Generator(device).manual_seed(0)
            self._read = [
                torch.randn(shape, dtype=dtype, device=device, generator=generator)
                for dtype in (self._state, self._model, self._model)
            ]
            numbers = torch.zeros(3, core.padded_outputs(1), dtype=self._state, device=device)
            numbers[:, 0] = torch.tensor([0.9, -0.3, 0.2], dtype=self._state, device=device)
            keys = torch.zeros((self._batch, 2), dtype=torch.int64, device=device)
            self._read += [numbers, keys, torch.zeros(1, dtype=torch.int32, device=device)]
        x, _, _, numbers, keys, broken = self._read
        results = [torch.empty(shape, dtype=self._state, device=device)]
        if self._model != self._state:
            results.append(torch.empty(shape, dtype=self._model, device=device))
        steps = body(self._state, self._model, self._batch, self._elements, keys, broken)
        places = [results[0].data_ptr(), results[1].data_ptr() if len(results) > 1 else 0, 0]
        kinds = [KINDS.index(kind) for kind in ("buffer", "cond", "uncond")]
        steps.add(kinds, [x.data_ptr(), 0, 0], [places], numbers)
        return steps, results
