"""Who runs a solver's step on a GPU: the CUDA kernels, or Triton's. Both take the same tables in device memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastdiff.program import KINDS
from fastdiff.runtime import choice, cuda
from fastdiff.runtime import triton as triton_kernels
from fastdiff.runtime.native import core

_NAMES = {torch.float64: "float64", torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_NOISE = KINDS.index("noise")


class Steps(Protocol):
    """Steps are numbered in the order in which they are added."""

    def add(
        self, kinds: Sequence[int], numbers: Sequence[int], outputs: Sequence[Sequence[int]], coefficients: Tensor
    ) -> None:
        """kinds: places in `KINDS`; numbers: the address of a buffer, the draw of a noise. outputs: addresses of the
        state and of two copies in the model's type, or 0. coefficients: (inputs, core.padded_outputs(outputs))."""

    def run(self, number: int, cond: Tensor | None, uncond: Tensor | None) -> None:
        """Queue a step on the current stream. cond, uncond: the network's outputs, contiguous, in the model's type."""


class NativeSteps:
    """By core.StepPlan: CUDA kernels, or, for tensors on the CPU, the same function one thread after the other.

    keys: (batch, 2) int64, seed and sample number; broken: int32, one a step, receives 1 where a result is not finite.
    """

    def __init__(
        self, state: torch.dtype, model: torch.dtype, batch: int, elements: int, keys: Tensor, broken: Tensor
    ) -> None:
        self._held = keys, broken
        self._device = keys.device
        on_cpu = self._device.type == "cpu"
        self._plan = core.StepPlan(
            state=_NAMES[state],
            model=_NAMES[model],
            batch=batch,
            elements=elements,
            keys=keys.data_ptr(),
            broken=broken.data_ptr(),
            launch=0 if on_cpu else cuda.step_address(),
            device=self._device.index or 0,
        )
        self._stream = (lambda: 0) if on_cpu else (lambda: torch.cuda.current_stream(self._device).cuda_stream)

    def add(
        self, kinds: Sequence[int], numbers: Sequence[int], outputs: Sequence[Sequence[int]], coefficients: Tensor
    ) -> None:
        self._plan.add(kinds, numbers, outputs, coefficients.data_ptr())

    def run(self, number: int, cond: Tensor | None, uncond: Tensor | None) -> None:
        addresses = (0 if out is None else out.data_ptr() for out in (cond, uncond))
        code = self._plan.run(number, *addresses, self._stream())
        if code:
            raise RuntimeError(f"a solver's step could not be launched: {cuda.error(code)}")


class TritonSteps:
    """By fastdiff.kernels.linear_combine, on any device that Triton reaches."""

    def __init__(
        self, state: torch.dtype, model: torch.dtype, batch: int, elements: int, keys: Tensor, broken: Tensor
    ) -> None:
        self.state, self.batch, self.elements, self.keys, self.broken = state, batch, elements, keys, broken
        self._none = torch.empty(1, dtype=model, device=keys.device)  # its type says that of the model
        self._steps: list[tuple[Tensor, Tensor, int, int, bool]] = []

    def add(
        self, kinds: Sequence[int], numbers: Sequence[int], outputs: Sequence[Sequence[int]], coefficients: Tensor
    ) -> None:
        from fastdiff.kernels.linear_combine import make_table

        table = make_table(kinds, numbers, outputs, self.keys.device)
        self._steps.append((table, coefficients, len(kinds), len(outputs), _NOISE in kinds))

    def run(self, number: int, cond: Tensor | None, uncond: Tensor | None) -> None:
        from fastdiff.kernels.linear_combine import launch_step

        table, coefficients, num_inputs, num_outputs, noisy = self._steps[number]
        launch_step(
            table, coefficients, self.keys, self.broken[number:], self._none if cond is None else cond,
            self._none if uncond is None else uncond, batch=self.batch, elements=self.elements, num_inputs=num_inputs,
            num_outputs=num_outputs, state=self.state, noisy=noisy,
        )  # fmt: skip


def choose(device: torch.device) -> tuple[type[NativeSteps] | type[TritonSteps] | None, str]:
    """Who runs the steps on a device, or None and why nobody can. With the triton backend, Triton alone; in its
    interpreter on the CPU."""
    insisted = choice.current() == "triton"
    if device.type != "cuda" and not (insisted and triton_kernels.INTERPRETED and device.type == "cpu"):
        return None, f"the state is on {device}, and there are kernels for CUDA devices only"
    native = "it is an AMD GPU" if torch.version.hip else cuda.unavailable()
    if native is None and not insisted:
        return NativeSteps, ""
    triton = triton_kernels.unavailable()
    if triton is None:
        return TritonSteps, ""
    return None, f"no CUDA kernels ({native}) and no Triton kernels ({triton})"
