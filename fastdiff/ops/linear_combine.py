"""Weighted sums of tensors, several at once, in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.ops.calls import Plan
from fastdiff.ops.given import several
from fastdiff.ops.op import Op
from fastdiff.ops.tensors import TYPES
from fastdiff.runtime.native import core

_KERNELS = {torch.float32: core.linear_combine_float32, torch.float64: core.linear_combine_float64}


class Arguments(NamedTuple):
    """The signature, once. coefficients: flat, [k * num_outputs + m]."""

    inputs: list[Tensor]
    coefficients: list[float]
    num_outputs: int

    @property
    def rows(self) -> list[list[float]]:
        """The coefficients of each output."""
        return [self.coefficients[m :: self.num_outputs] for m in range(self.num_outputs)]


class LinearCombine(Op[Arguments]):
    """`linear_combine`."""

    name = "linear_combine"
    types = _KERNELS
    triton_types = (torch.float64, *TYPES)
    results = "Tensor[]"
    timed = False  # coefficients are copied from the CPU, which no graph can do, and are others in each call
    by_state = ("coefficients",)

    def __call__(self, coefficients: Sequence[Sequence[float]], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """`out[m] = sum over k of coefficients[m][k] * inputs[k]`, all of them in one pass over memory.

        coefficients: M rows of K numbers. inputs: K tensors of one shape, dtype (float32, float64, bfloat16, float16)
        and device. Returns M new contiguous tensors of that shape and dtype. Sums are in the dtype itself, those of a
        half precision in Triton in float32. Differentiable in the inputs. Raises ValueError where shapes do not fit,
        TypeError for mixed dtypes.
        """
        try:
            inputs = list(inputs)
            sizes = [len(row) for row in coefficients]
            flat = [float(c) for column in zip(*coefficients) for c in column]
        except (TypeError, ValueError) as error:
            several("inputs", inputs)
            raise TypeError(f"coefficients must be rows of numbers, got {coefficients!r:.100}") from error
        if not sizes or (inputs and set(sizes) != {len(inputs)}):
            several("inputs", inputs)
            raise ValueError(f"coefficients must be rows of {len(inputs)} numbers, got rows of {sizes}")
        return tuple(self.run(Arguments(inputs, flat, len(sizes))))

    def reference(self, a: Arguments, inplace: bool = False) -> list[Tensor]:
        first, *others = a.inputs
        return [sum((c * x for c, x in zip(row[1:], others)), row[0] * first).contiguous() for row in a.rows]

    def check(self, a: Arguments) -> None:
        if not a.inputs:
            raise ValueError("inputs must hold at least one tensor")
        first = a.inputs[0]
        shape, device, dtype = first.shape, first.device, first.dtype
        for k, x in enumerate(a.inputs):
            if x.shape != shape or x.device != device:
                raise ValueError(
                    f"inputs[{k}] is {tuple(x.shape)} on {x.device}, inputs[0] is {tuple(shape)} on {first.device}"
                )
            if x.dtype != dtype:
                raise TypeError(f"inputs[{k}] is {x.dtype}, inputs[0] is {dtype}")
        if len(a.coefficients) != len(a.inputs) * a.num_outputs:
            raise ValueError(f"expected {len(a.inputs)} x {a.num_outputs} coefficients, got {len(a.coefficients)}")

    def limits(self, a: Arguments) -> str | None:
        if a.num_outputs > core.MAX_OUTPUTS:
            return f"the C++ kernel gives at most {core.MAX_OUTPUTS} outputs, not {a.num_outputs}"
        if len(a.inputs) > core.MAX_INPUTS:
            return f"the C++ kernel takes at most {core.MAX_INPUTS} inputs, not {len(a.inputs)}"
        return None

    def kernel(self, a: Arguments) -> list[Tensor]:
        inputs = [x.contiguous() for x in a.inputs]
        outputs = [torch.empty_like(inputs[0]) for _ in range(a.num_outputs)]
        _KERNELS[inputs[0].dtype](
            [x.data_ptr() for x in inputs], [y.data_ptr() for y in outputs], a.coefficients, inputs[0].numel(),
            torch.get_num_threads(),
        )  # fmt: skip
        return outputs

    def fake(self, a: Arguments) -> list[Tensor]:
        return [torch.empty_like(a.inputs[0], memory_format=torch.contiguous_format) for _ in range(a.num_outputs)]

    def triton_limits(self, a: Arguments) -> str | None:
        if a.inputs[0].is_cuda and torch.cuda.is_current_stream_capturing():
            return "a CUDA graph is being captured, into which no coefficients can be copied from the CPU"
        return None

    def state(self, a: Arguments) -> tuple[int, bool]:
        """How many coefficients, and whether a graph is being captured."""
        return len(a.coefficients), a.inputs[0].is_cuda and torch.cuda.is_current_stream_capturing()

    def plan(self, a: Arguments, cut: Any = None) -> Plan:
        from fastdiff.kernels.linear_combine import Forward

        forward = Forward(a.inputs, a.num_outputs)
        return lambda a: forward(a.coefficients, a.inputs)

    def save(self, ctx: Any, values: tuple[Any, ...], results: Any) -> None:
        """Keep for `backward` the coefficients."""
        tensors, *ctx.sums = values
        ctx.num_inputs = len(tensors)

    def backward(self, ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:  # type: ignore[override]
        """The transposed sums: the gradient of input k is sum over m of coefficients[m][k] * gradient[m]."""
        coefficients, count = ctx.sums
        present = [(m, g) for m, g in enumerate(gradients) if g is not None]
        if not present:
            return [None] * ctx.num_inputs, None, None
        rows = [[coefficients[k * count + m] for m, _ in present] for k in range(ctx.num_inputs)]
        return list(self(rows, [g for _, g in present])), None, None


linear_combine = LinearCombine()
