"""Group norm and SiLU. Wu & He 2018, Group Normalization, Eq. 1; the adaptive form: Dhariwal & Nichol 2021 (ADM), Eq.
3."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.errors import unknown
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

_ACTIVATIONS = ("silu", "none")


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = "silu",
) -> Tensor:
    """act((1 + scale) GN(x) + shift), GN(x) = (x - mean) / sqrt(variance + eps) * weight + bias over groups of
    channels.

    x: (N, C, ...), float32, bfloat16, float16 or float64; num_groups divides C. weight, bias: (C,). scale, shift: (N,
    C) or (N, C, 1, ...), each optional. activation: "silu", or None for act(y) = y. Statistics are in float32 (float64
    for float64), the rest as well, and rounded once. Channels-last inputs (4 or 5 dimensions) give channels-last
    results and are not copied; others give contiguous ones. Differentiable. Raises ValueError where shapes do not fit
    or for an unknown activation, TypeError for mixed dtypes.
    """
    activation = activation or "none"
    arguments = (x, num_groups, weight, bias, eps, scale, shift, activation)
    _check(*arguments)
    if is_direct(x, (x, weight, bias, scale, shift)):
        return _kernel(*arguments)
    slower = faster_in_torch(*arguments)
    if is_left_to_torch(x, slower):
        return reference(*arguments)
    on_gpu = functools.partial(supports_triton, *arguments)
    if pick(supports(*arguments), slower, triton=on_gpu, op="group_norm_silu") == "reference":
        return reference(*arguments)
    return _call(*arguments)


def reference(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    """The same in plain PyTorch."""
    y = F.group_norm(x, num_groups, weight, bias, eps)
    per_channel = (*x.shape[:2], *[1] * (x.ndim - 2))
    if scale is not None:
        y = y * (1 + scale.reshape(per_channel))
    if shift is not None:
        y = y + shift.reshape(per_channel)
    y = F.silu(y) if activation == "silu" else y
    return y.contiguous(memory_format=_format(x))


def supports(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "silu",
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
    return transformed() or on_triton.group_norm_silu_unsupported(x)


def _format(x: Tensor) -> torch.memory_format:
    """The layout that x has, and that its result gets."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return torch.channels_last
    if x.ndim == 5 and x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous():
        return torch.channels_last_3d
    return torch.contiguous_format


def faster_in_torch(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "silu",
) -> str | None:
    """Why torch is faster with these arguments of `reference`, so that it runs unless the kernel is insisted on; or
    None."""
    few = _FEW if scale is None and shift is None else _FEW // 4  # torch reads and writes x once more for each of these
    if x.numel() < few and wants_gradient((x, weight, bias, scale, shift)):
        return "a gradient is wanted, and with so few numbers the calls from Python take longer than the work"
    return None


_FEW = 1 << 17


def _check(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
) -> None:
    if x.ndim < 2:
        raise ValueError(f"x must be (N, C, ...), got {tuple(x.shape)}")
    samples, channels, *pixels = x.shape
    if num_groups < 1 or channels < 1 or channels % num_groups != 0:
        raise ValueError(f"num_groups must divide the channels of x {tuple(x.shape)}, got {num_groups}")
    if samples > 0 and 0 in pixels:
        raise ValueError(f"x has no pixels: {tuple(x.shape)}")
    if activation not in _ACTIVATIONS:
        raise unknown("activation", activation, _ACTIVATIONS)
    if weight is not None:
        check_tensor("weight", weight, x, (channels,))
    if bias is not None:
        check_tensor("bias", bias, x, (channels,))
    if scale is not None or shift is not None:
        flat = (samples, channels)
        whole = (*flat, *[1] * len(pixels))
        if scale is not None:
            check_tensor("scale", scale, x, flat, whole)
        if shift is not None:
            check_tensor("shift", shift, x, flat, whole)


def _kernel(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
) -> Tensor:
    if x.dtype not in TYPES:
        raise ValueError(f"the kernel takes float32, bfloat16 and float16, not {x.dtype}")
    samples, channels = x.shape[:2]
    layout = _format(x)
    x = x.contiguous(memory_format=layout)
    out = empty_like(x, layout)
    vectors = [t if t is None else t.contiguous() for t in (weight, bias)]
    adaptive = [t if t is None else t.reshape(samples, channels).contiguous() for t in (scale, shift)]
    core.group_norm_silu(
        TYPES[x.dtype],
        out.data_ptr(),
        x.data_ptr(),
        0 if vectors[0] is None else vectors[0].data_ptr(),
        0 if vectors[1] is None else vectors[1].data_ptr(),
        (0, 0, 0) if adaptive[0] is None else (adaptive[0].data_ptr(), channels, 0),
        (0, 0, 0) if adaptive[1] is None else (adaptive[1].data_ptr(), channels, 0),
        samples,
        channels,
        x.numel() // max(1, samples * channels),
        num_groups,
        layout is not torch.contiguous_format,
        activation == "silu",
        eps,
        torch.get_num_threads(),
    )
    return out


def _fake(x: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(x, memory_format=_format(x))


def _check_backward(
    gradient: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
) -> None:
    _check(x, num_groups, weight, bias, eps, scale, shift, activation)
    check_tensor("gradient", gradient, x, x.shape)


def _kernel_backward(
    gradient: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
) -> tuple[Tensor, ...]:
    if x.dtype not in TYPES:
        raise ValueError(f"the kernel takes float32, bfloat16 and float16, not {x.dtype}")
    found = empty_like(x, _format(x)), *empty_gradients(x, weight, bias, scale, shift)
    samples, channels = x.shape[:2]
    layout = _format(x)
    x, gradient = x.contiguous(memory_format=layout), gradient.contiguous(memory_format=layout)
    vectors = [t if t is None else t.contiguous() for t in (weight, bias)]
    adaptive = [t if t is None else t.reshape(samples, channels).contiguous() for t in (scale, shift)]
    core.group_norm_silu_backward(
        TYPES[x.dtype],
        [t.data_ptr() for t in found],
        gradient.data_ptr(),
        x.data_ptr(),
        0 if vectors[0] is None else vectors[0].data_ptr(),
        0 if vectors[1] is None else vectors[1].data_ptr(),
        (0, 0, 0) if adaptive[0] is None else (adaptive[0].data_ptr(), channels, 0),
        (0, 0, 0) if adaptive[1] is None else (adaptive[1].data_ptr(), channels, 0),
        (samples, channels, x.numel() // max(1, samples * channels), num_groups),
        layout is not torch.contiguous_format,
        activation == "silu",
        eps,
        torch.get_num_threads(),
    )
    return found


def _fake_backward(
    gradient: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
) -> tuple[Tensor, ...]:
    return torch.empty_like(x, memory_format=_format(x)), *empty_gradients(x, weight, bias, scale, shift)


_call_backward = register(
    "group_norm_silu_backward(Tensor gradient, Tensor x, int num_groups, Tensor? weight, Tensor? bias, float eps, "
    "Tensor? scale, Tensor? shift, str activation) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernel=_kernel_backward,
    check=_check_backward,
    fake=_fake_backward,
)


def _own_backward(
    gradient: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
) -> tuple[Tensor | None, ...] | None:
    """Gradients of all arguments; None where x is not on the CPU."""
    if not x.is_cpu:
        return None
    of_x, of_weight, of_bias, of_scale, of_shift = _call_backward(
        gradient, x, num_groups, weight, bias, eps, scale, shift, activation
    )
    return of_x, None, of_weight, of_bias, None, of_scale, of_shift, None


_call = register(
    "group_norm_silu(Tensor x, int num_groups, Tensor? weight, Tensor? bias, float eps, Tensor? scale, Tensor? shift, "
    "str activation) -> Tensor",
    kernel=_kernel,
    check=_check,
    fake=_fake,
    triton=on_triton.group_norm_silu,
    **through_reference(reference, on_triton.group_norm_silu_gradients, _own_backward),
)
