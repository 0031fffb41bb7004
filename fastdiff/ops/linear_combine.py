"""Weighted sums of tensors, several at once: the arithmetic of every solver step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastdiff.backends import pick
from fastdiff.errors import expect
from fastdiff.native import core

_KERNELS = {torch.float32: core.linear_combine_float32, torch.float64: core.linear_combine_float64}


def linear_combine(coefficients: Sequence[Sequence[float]], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """out[m] = sum over k of coefficients[m][k] * inputs[k], all of them in one pass over memory.

    coefficients: M rows of K numbers. inputs: K tensors of one shape, dtype (float32, float64, bfloat16, float16) and
    device. Returns M new contiguous tensors of that shape and dtype. Sums are in the dtype itself. Differentiable in
    the inputs. Raises ValueError where shapes do not fit, TypeError for mixed dtypes.
    """
    inputs = list(inputs)
    _check(inputs)
    expect(
        len(coefficients) > 0 and all(len(row) == len(inputs) for row in coefficients),
        f"coefficients must be rows of {len(inputs)} numbers, got rows of {[len(row) for row in coefficients]}",
    )
    if pick(supports(coefficients, inputs)) == "reference":
        return reference(coefficients, inputs)
    flat = [float(c) for column in zip(*coefficients) for c in column]
    return tuple(torch.ops.fastdiff.linear_combine(inputs, flat, len(coefficients)))


def _check(inputs: Sequence[Tensor]) -> None:
    expect(len(inputs) > 0, "inputs must hold at least one tensor")
    first = inputs[0]
    for k, x in enumerate(inputs):
        expect(
            x.shape == first.shape and x.device == first.device,
            f"inputs[{k}] is {tuple(x.shape)} on {x.device}, inputs[0] is {tuple(first.shape)} on {first.device}",
        )
        if x.dtype != first.dtype:
            raise TypeError(f"inputs[{k}] is {x.dtype}, inputs[0] is {first.dtype}")


def reference(coefficients: Sequence[Sequence[float]], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same in plain PyTorch."""
    return tuple(
        sum((c * x for c, x in zip(row[1:], inputs[1:])), row[0] * inputs[0]).contiguous() for row in coefficients
    )


def supports(coefficients: Sequence[Sequence[float]], inputs: Sequence[Tensor]) -> str | None:
    """Why the compiled kernel cannot take this, or None."""
    x = inputs[0]
    if forward_ad._current_level >= 0:
        return "forward-mode gradients are being computed, and the operator has only backward ones"
    if x.device.type != "cpu":
        return f"inputs are on {x.device}, and the C++ kernel runs on the CPU"
    if x.dtype not in _KERNELS:
        return f"the C++ kernel takes float32 and float64, not {x.dtype}"
    if len(coefficients) > core.MAX_OUTPUTS:
        return f"the C++ kernel gives at most {core.MAX_OUTPUTS} outputs, not {len(coefficients)}"
    if len(inputs) > core.MAX_INPUTS:
        return f"the C++ kernel takes at most {core.MAX_INPUTS} inputs, not {len(inputs)}"
    return None


# ---- registration: coefficients come flat, [k * num_outputs + m] ----------------------------------------------------

_library = torch.library.Library("fastdiff", "FRAGMENT")
_library.define("linear_combine(Tensor[] inputs, float[] coefficients, int num_outputs) -> Tensor[]")


def _cpu(inputs: list[Tensor], coefficients: list[float], num_outputs: int) -> list[Tensor]:
    _check(inputs)  # whoever calls the operator by its registered name: the kernel gets bare addresses
    expect(
        len(coefficients) == len(inputs) * num_outputs and inputs[0].dtype in _KERNELS,
        f"expected {len(inputs)} x {num_outputs} coefficients and float32 or float64 inputs, "
        f"got {len(coefficients)} and {inputs[0].dtype}",
    )
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


_library.impl("linear_combine", _cpu, "CPU")
torch.library.register_fake("fastdiff::linear_combine", _fake, lib=_library)
torch.library.register_autograd("fastdiff::linear_combine", _backward, setup_context=_save, lib=_library)
