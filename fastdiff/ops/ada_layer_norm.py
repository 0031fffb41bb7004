"""adaLN: layer norm, then modulation by a condition. Peebles & Xie 2023 (DiT), Section 3.2."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops import on_triton
from fastdiff.ops.registration import (
    TYPES,
    check_tensor,
    empty_gradients,
    is_direct,
    is_left_to_torch,
    register,
    through_reference,
)
from fastdiff.runtime.choice import pick
from fastdiff.runtime.dispatcher import transformed, wants_gradient
from fastdiff.runtime.memory import empty_like
from fastdiff.runtime.native import core


def ada_layer_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """(1 + scale) LN(x) + shift.

    x: (B, S, C), float32, bfloat16, float16 or float64, any strides. scale, shift: (B, 1, C) or (B, S, C). weight,
    bias: (C,), of the norm. Strided views whose last dimension is contiguous, such as those of `chunk(6, dim=-1)`, are
    read in place. Statistics are in float32 (float64 for float64), the rest as well, and rounded once.
    Returns (B, S, C), contiguous, in x's dtype. Differentiable. Raises ValueError where shapes do not fit, TypeError
    for mixed dtypes.
    """
    arguments = (x, scale, shift, weight, bias, eps)
    _check(*arguments)
    if is_direct(x, (x, scale, shift, weight, bias)):
        return _kernel(*arguments)
    slower = faster_in_torch(*arguments)
    if is_left_to_torch(x, slower):
        return reference(*arguments)
    on_gpu = functools.partial(supports_triton, *arguments)
    if pick(supports(*arguments), slower, triton=on_gpu, op="ada_layer_norm") == "reference":
        return reference(*arguments)
    return _call(*arguments)


def reference(
    x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """The same in plain PyTorch."""
    return (F.layer_norm(x, x.shape[-1:], weight, bias, eps) * (1 + scale) + shift).contiguous()


def supports(
    x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6
) -> str | None:
    """Why the compiled kernel cannot take this, or None."""
    if (reason := transformed()) is not None:
        return reason
    if not x.is_cpu:
        return f"x is on {x.device}, and the C++ kernel runs on the CPU"
    if x.dtype not in TYPES:
        return f"the C++ kernel takes float32, bfloat16 and float16, not {x.dtype}"
    return None


def supports_triton(x: Tensor, *rest: object) -> str | None:
    """Why the Triton kernel cannot take this, or None. Arguments as of `reference`."""
    return transformed() or on_triton.ada_layer_norm_unsupported(x)


def faster_in_torch(
    x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6
) -> str | None:
    """Why torch is faster with these arguments of `reference`, so that it runs unless the kernel is insisted on; or
    None."""
    if not wants_gradient((x, scale, shift, weight, bias)):
        return None
    if x.numel() < _FEW:
        return "a gradient is wanted, and with so few numbers the calls from Python take longer than the work"
    if not _same_for_rows(scale, shift):
        return "a gradient is wanted, and scale or shift differ from row to row, for which it has no kernel"
    return None


_FEW = 1 << 15


def _same_for_rows(scale: Tensor, shift: Tensor) -> bool:
    return scale.shape[1] == 1 and shift.shape[1] == 1


def _check(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    shape = x.shape
    if x.ndim != 3:
        raise ValueError(f"x must be (B, S, C), got {tuple(shape)}")
    batch, _, channels = shape
    if channels == 0:
        raise ValueError(f"x must have channels, got {tuple(shape)}")
    if bias is not None and weight is None:
        raise ValueError("bias needs weight")
    row, vector = (batch, 1, channels), (channels,)
    check_tensor("scale", scale, x, row, shape)
    check_tensor("shift", shift, x, row, shape)
    if weight is not None:
        check_tensor("weight", weight, x, vector)
    if bias is not None:
        check_tensor("bias", bias, x, vector)


def _kernel(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    if x.dtype not in TYPES:
        raise ValueError(f"the kernel takes float32, bfloat16 and float16, not {x.dtype}")
    batch, rows, channels = x.shape
    out = empty_like(x)
    copies: list[Tensor] = []  # until the kernel has run
    weight = None if weight is None else weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    core.ada_layer_norm(
        TYPES[x.dtype],
        out.data_ptr(),
        _rows(x, copies),
        _rows(scale, copies),
        _rows(shift, copies),
        0 if weight is None else weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        batch,
        rows,
        channels,
        eps,
        torch.get_num_threads(),
    )
    return out


def _rows(tensor: Tensor | None, copies: list[Tensor]) -> tuple[int, int, int]:
    """(address, stride of a batch, stride of a row; 0 where the row is the same for all).

    Of a copy, appended to `copies`, if rows are not contiguous.
    """
    if tensor is None:
        return 0, 0, 0
    batch, row, step = tensor.stride()
    if step != 1:
        tensor = tensor.contiguous()
        copies.append(tensor)
        batch, row, _ = tensor.stride()
    return tensor.data_ptr(), batch, row if tensor.shape[1] > 1 else 0


def _fake(x: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _check_backward(
    gradient: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> None:
    _check(x, scale, shift, weight, bias, eps)
    check_tensor("gradient", gradient, x, x.shape)
    row = (x.shape[0], 1, x.shape[2])
    check_tensor("scale", scale, x, row)
    check_tensor("shift", shift, x, row)


def _kernel_backward(
    gradient: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, ...]:
    if x.dtype not in TYPES:
        raise ValueError(f"the kernel takes float32, bfloat16 and float16, not {x.dtype}")
    found = empty_like(x), *empty_gradients(x, scale, shift, weight, bias)
    copies: list[Tensor] = []  # until the kernel has run
    weight = None if weight is None else weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    core.ada_layer_norm_backward(
        TYPES[x.dtype],
        [t.data_ptr() for t in found],
        _rows(gradient, copies),
        _rows(x, copies),
        _rows(scale, copies),
        _rows(shift, copies),
        0 if weight is None else weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        x.shape,
        eps,
        torch.get_num_threads(),
    )
    return found


def _fake_backward(
    gradient: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, ...]:
    of_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    return of_x, *empty_gradients(x, scale, shift, weight, bias)


_call_backward = register(
    "ada_layer_norm_backward(Tensor gradient, Tensor x, Tensor scale, Tensor shift, Tensor? weight, Tensor? bias, "
    "float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernel=_kernel_backward,
    check=_check_backward,
    fake=_fake_backward,
)


def _own_backward(
    gradient: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor | None, ...] | None:
    """Gradients of all arguments; None where scale or shift differ from row to row."""
    if not x.is_cpu or not _same_for_rows(scale, shift):
        return None
    return *_call_backward(gradient, x, scale, shift, weight, bias, eps), None


_call = register(
    "ada_layer_norm(Tensor x, Tensor scale, Tensor shift, Tensor? weight, Tensor? bias, float eps) -> Tensor",
    kernel=_kernel,
    check=_check,
    fake=_fake,
    triton=on_triton.ada_layer_norm,
    **through_reference(reference, on_triton.ada_layer_norm_gradients, _own_backward),
)
