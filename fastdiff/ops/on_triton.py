"""The operators on a GPU: their Triton kernels in the form in which torch's dispatcher calls them, and their gradients.

Where fastdiff.use("triton") is in force and Triton interprets (TRITON_INTERPRET=1), tensors on the CPU come here too.
Gradients are operators of their own, so that torch.compile can trace past them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.ops.registration import TYPES, define
from fastdiff.runtime import choice

MAX_HEAD_DIM = 256
MAX_CHANNELS = 16384  # of a row of ada_layer_norm, which stays in registers


def runs(x: Tensor) -> bool:
    """Whether an operator that was called with x runs here."""
    return x.is_cuda or choice.current() == "triton"


def unsupported(name: str, x: Tensor) -> str | None:
    """Why no kernel takes x: where it is, or its type; or None."""
    if (reason := choice.out_of_reach(name, x)) is not None:
        return reason
    return None if x.dtype in TYPES else f"Triton's kernel takes float32, bfloat16 and float16, not {x.dtype}"


# ---- attention -------------------------------------------------------------------------------------------------------


def attention_unsupported(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> str | None:
    """Why the kernel cannot take this, or None."""
    if (reason := unsupported("q", q)) is not None:
        return reason
    if q.shape[3] > MAX_HEAD_DIM:
        return f"Triton's kernel takes head dimensions up to {MAX_HEAD_DIM}, not {q.shape[3]}"
    if v.shape[3] != q.shape[3]:
        return f"Triton's kernel takes values as wide as keys, {q.shape[3]}, not {v.shape[3]}"
    if mask is not None and mask.requires_grad and torch.is_grad_enabled():
        return "Triton's kernel has no gradient for the mask"
    if max(t.shape[2] * t.stride(2) for t in (q, k, v)) >= 2**31:
        return "Triton's kernel takes heads that span less than 2^31 numbers"
    return None


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, return_maps: bool, return_lse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, the logarithm of the softmax's denominators and the maps; the latter empty if they are not wanted."""
    from fastdiff.kernels import attention as kernels

    given: dict[str, Any] = dict(mask=mask, scale=scale, precision=_precision())
    out, lse = kernels.attention_forward(q, k, v, **given)
    maps = kernels.attention_maps(q, k, lse, **given) if return_maps else q.new_empty((0,))
    return out, lse if return_lse else lse.new_empty((0,)), maps


def _precision() -> str:
    """Of float32 products: what torch.set_float32_matmul_precision allows torch's own."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _attention_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    from fastdiff.kernels.attention_backward import attention_backward as kernels

    found = kernels(gradient, q, k, v, out, lse, mask=mask, scale=scale, precision=_precision())
    return tuple(t.contiguous() for t in found)  # type: ignore[return-value]


attention_backward = define(
    "attention_backward_triton(Tensor gradient, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor out, Tensor lse, "
    "float scale) -> (Tensor, Tensor, Tensor)",
    {"CPU": _attention_backward, "CUDA": _attention_backward},
    lambda gradient, q, k, v, *rest: tuple(_empty(t) for t in (q, k, v)),
)


# ---- group_norm_silu -------------------------------------------------------------------------------------------------


def group_norm_silu_unsupported(x: Tensor) -> str | None:
    """Why the kernel cannot take this, or None."""
    if (reason := unsupported("x", x)) is not None:
        return reason
    if x.shape[0] and x.numel() // x.shape[0] >= 2**31:
        return "Triton's kernel takes samples of less than 2^31 numbers"
    return None


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
) -> Tensor:
    """As fastdiff.ops.group_norm_silu."""
    from fastdiff.kernels.group_norm_silu import group_norm_silu as kernels

    flat, shape = _without_depth(x)
    vectors: dict[str, Any] = dict(scale=scale, shift=shift, activation=activation)
    return kernels(flat, num_groups, weight, bias, eps, **vectors).view(shape)


def _group_norm_silu_backward(
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
    from fastdiff.kernels.group_norm_silu_backward import group_norm_silu_backward as kernels

    flat, shape = _without_depth(x)
    found = kernels(
        gradient.reshape(flat.shape), flat, num_groups, weight, bias, eps, scale=scale, shift=shift,
        activation=activation,
    )  # fmt: skip
    found["x"] = found["x"].view(shape)
    return tuple(found[name] if name in found else _none(x) for name in ("x", "weight", "bias", "scale", "shift"))


def _without_depth(x: Tensor) -> tuple[Tensor, torch.Size]:
    """x with four dimensions where it has five and is channels-last; its own shape."""
    if x.ndim == 5 and x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous():
        return x.flatten(3), x.shape
    return x, x.shape


_group_norm_silu_gradients = define(
    "group_norm_silu_backward_triton(Tensor gradient, Tensor x, int num_groups, Tensor? weight, Tensor? bias, "
    "float eps, Tensor? scale, Tensor? shift, str activation) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    {"CPU": _group_norm_silu_backward, "CUDA": _group_norm_silu_backward},
    lambda gradient, x, num_groups, weight, bias, eps, scale, shift, activation: (
        torch.empty_like(x, memory_format=_layout(x)), *(_empty(t, x) for t in (weight, bias, scale, shift))
    ),
)  # fmt: skip


def _layout(x: Tensor) -> torch.memory_format:
    for ndim, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.ndim == ndim and x.is_contiguous(memory_format=layout) and not x.is_contiguous():
            return layout
    return torch.contiguous_format


def group_norm_silu_gradients(gradient: Tensor, *arguments: Any) -> tuple[Tensor | None, ...] | None:
    """Of each argument of the operator; None where the kernel does not run."""
    if not runs(gradient):
        return None
    of_x, of_weight, of_bias, of_scale, of_shift = _group_norm_silu_gradients(gradient, *arguments)
    return of_x, None, of_weight, of_bias, None, of_scale, of_shift, None


# ---- ada_layer_norm --------------------------------------------------------------------------------------------------


def ada_layer_norm_unsupported(x: Tensor) -> str | None:
    """Why the kernel cannot take this, or None."""
    if (reason := unsupported("x", x)) is not None:
        return reason
    return None if x.shape[2] <= MAX_CHANNELS else f"Triton's kernel takes up to {MAX_CHANNELS} channels"


def ada_layer_norm(
    x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """As fastdiff.ops.ada_layer_norm."""
    from fastdiff.kernels.ada_layer_norm import ada_layer_norm as kernels

    x, scale, shift, weight, bias = map(_rows, (x, scale, shift, weight, bias))
    return kernels(x, scale, shift, weight=weight, bias=bias, eps=eps)


def _rows(tensor: Any) -> Any:
    """The tensor, or a copy where its last dimension is not contiguous."""
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


def _ada_layer_norm_backward(
    gradient: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, ...]:
    from fastdiff.kernels.ada_layer_norm_backward import ada_layer_norm_backward as kernels

    gradient, held, scale, shift, weight, bias = map(_rows, (gradient, x, scale, shift, weight, bias))
    found = kernels(gradient, held, scale, shift, weight=weight, bias=bias, eps=eps)
    names = ("x", "scale", "shift", "weight", "bias")
    return tuple(found[name] if name in found else _none(x) for name in names)


_ada_layer_norm_gradients = define(
    "ada_layer_norm_backward_triton(Tensor gradient, Tensor x, Tensor scale, Tensor shift, Tensor? weight, "
    "Tensor? bias, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    {"CPU": _ada_layer_norm_backward, "CUDA": _ada_layer_norm_backward},
    lambda gradient, x, scale, shift, weight, bias, eps: tuple(_empty(t, x) for t in (x, scale, shift, weight, bias)),
)


def ada_layer_norm_gradients(gradient: Tensor, *arguments: Any) -> tuple[Tensor | None, ...] | None:
    """Of each argument of the operator; None where the kernel does not run."""
    if not runs(gradient):
        return None
    return *_ada_layer_norm_gradients(gradient, *arguments), None


# ---- linear_combine --------------------------------------------------------------------------------------------------


def linear_combine_unsupported(x: Tensor) -> str | None:
    """Why the kernel cannot take this, or None."""
    if (reason := choice.out_of_reach("inputs[0]", x)) is not None:
        return reason
    if x.dtype not in (*TYPES, torch.float64):
        return f"Triton's kernel takes float64, float32, bfloat16 and float16, not {x.dtype}"
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being captured, into which no coefficients can be copied from the CPU"
    return None


def linear_combine(inputs: list[Tensor], coefficients: list[float], num_outputs: int) -> list[Tensor]:
    """coefficients: [k * num_outputs + m]."""
    from fastdiff.kernels.linear_combine import linear_combine as kernels

    return list(kernels([coefficients[m::num_outputs] for m in range(num_outputs)], inputs))


# ---- shapes of gradients ---------------------------------------------------------------------------------------------


def _empty(tensor: Tensor | None, x: Tensor | None = None) -> Tensor:
    """Contiguous, of a tensor's shape; without elements, of x's type, where there is none."""
    if tensor is None:
        assert x is not None
        return _none(x)
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _none(x: Tensor) -> Tensor:
    return x.new_empty((0,))
