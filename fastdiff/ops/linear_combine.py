"""Weighted sums of tensors, several at once: the arithmetic of every solver step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.ops import on_triton
from fastdiff.ops.registration import register
from fastdiff.runtime.choice import pick
from fastdiff.runtime.dispatcher import transformed
from fastdiff.runtime.native import core

_KERNELS = {torch.float32: core.linear_combine_float32, torch.float64: core.linear_combine_float64}


def linear_combine(coefficients: Sequence[Sequence[float]], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`out[m] = sum over k of coefficients[m][k] * inputs[k]`, all of them in one pass over memory.

    coefficients: M rows of K numbers. inputs: K tensors of one shape, dtype (float32, float64, bfloat16, float16) and
    device. Returns M new contiguous tensors of that shape and dtype. Sums are in the dtype itself, those of a half
    precision in Triton in float32. Differentiable in the inputs. Raises ValueError where shapes do not fit, TypeError
    for mixed dtypes.
    """
    inputs = list(inputs)
    _check(inputs)
    sizes = [len(row) for row in coefficients]
    if not sizes or set(sizes) != {len(inputs)}:
        raise ValueError(f"coefficients must be rows of {len(inputs)} numbers, got rows of {sizes}")
    on_gpu = lambda: supports_triton(coefficients, inputs)  # noqa: E731
    if pick(supports(coefficients, inputs), triton=on_gpu, op="linear_combine") == "reference":
        return reference(coefficients, inputs)
    flat = [float(c) for column in zip(*coefficients) for c in column]
    return tuple(_call(inputs, flat, len(coefficients)))


def _check(inputs: Sequence[Tensor]) -> None:
    if not inputs:
        raise ValueError("inputs must hold at least one tensor")
    first = inputs[0]
    shape, device, dtype = first.shape, first.device, first.dtype
    for k, x in enumerate(inputs):
        if x.shape != shape or x.device != device:
            raise ValueError(
                f"inputs[{k}] is {tuple(x.shape)} on {x.device}, inputs[0] is {tuple(shape)} on {first.device}"
            )
        if x.dtype != dtype:
            raise TypeError(f"inputs[{k}] is {x.dtype}, inputs[0] is {dtype}")


def reference(coefficients: Sequence[Sequence[float]], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same in plain PyTorch."""
    return tuple(
        sum((c * x for c, x in zip(row[1:], inputs[1:])), row[0] * inputs[0]).contiguous() for row in coefficients
    )


def supports(coefficients: Sequence[Sequence[float]], inputs: Sequence[Tensor]) -> str | None:
    """Why the compiled kernel cannot take this, or None."""
    x = inputs[0]
    if (reason := transformed()) is not None:
        return reason
    if x.device.type != "cpu":
        return f"inputs are on {x.device}, and the C++ kernel runs on the CPU"
    if x.dtype not in _KERNELS:
        return f"the C++ kernel takes float32 and float64, not {x.dtype}"
    if len(coefficients) > core.MAX_OUTPUTS:
        return f"the C++ kernel gives at most {core.MAX_OUTPUTS} outputs, not {len(coefficients)}"
    if len(inputs) > core.MAX_INPUTS:
        return f"the C++ kernel takes at most {core.MAX_INPUTS} inputs, not {len(inputs)}"
    return None


def supports_triton(coefficients: Sequence[Sequence[float]], inputs: Sequence[Tensor]) -> str | None:
    """Why the Triton kernel cannot take this, or None."""
    return transformed() or on_triton.linear_combine_unsupported(inputs[0])


# ---- registration: coefficients come flat, [k * num_outputs + m] ----------------------------------------------------


def _check_flat(inputs: list[Tensor], coefficients: list[float], num_outputs: int) -> None:
    _check(inputs)
    if len(coefficients) != len(inputs) * num_outputs:
        raise ValueError(f"expected {len(inputs)} x {num_outputs} coefficients, got {len(coefficients)}")


def _kernel(inputs: list[Tensor], coefficients: list[float], num_outputs: int) -> list[Tensor]:
    if inputs[0].dtype not in _KERNELS:
        raise ValueError(f"the kernel takes float32 and float64 inputs, not {inputs[0].dtype}")
    inputs = [x.contiguous() for x in inputs]
    outputs = [torch.empty_like(inputs[0]) for _ in range(num_outputs)]
    _KERNELS[inputs[0].dtype](
        [x.data_ptr() for x in inputs],
        [y.data_ptr() for y in outputs],
        coefficients,
        inputs[0].numel(),
        torch.get_num_threads(),
    )
    return outputs


def _fake(inputs: list[Tensor], coefficients: list[float], num_outputs: int) -> list[Tensor]:
    return [torch.empty_like(inputs[0], memory_format=torch.contiguous_format) for _ in range(num_outputs)]


def _save(ctx, inputs: tuple, output: list[Tensor]) -> None:
    tensors, ctx.coefficients, ctx.num_outputs = inputs
    ctx.num_inputs = len(tensors)


def _backward(ctx, grads: list[Tensor | None]) -> tuple:
    """The transposed sums: the gradient of input k is sum over m of coefficients[m][k] * grad[m]."""
    present = [(m, g) for m, g in enumerate(grads) if g is not None]
    if not present:
        return [None] * ctx.num_inputs, None, None
    rows = [[ctx.coefficients[k * ctx.num_outputs + m] for m, _ in present] for k in range(ctx.num_inputs)]
    return list(linear_combine(rows, [g for _, g in present])), None, None


_call = register(
    "linear_combine(Tensor[] inputs, float[] coefficients, int num_outputs) -> Tensor[]",
    kernel=_kernel,
    check=_check_flat,
    fake=_fake,
    save=_save,
    backward=_backward,
    triton=on_triton.linear_combine,
)
