"""Group norm and SiLU. Wu & He 2018, Group Normalization, Eq. 1; the adaptive form: Dhariwal & Nichol 2021 (ADM), Eq.
3."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.errors import expect, unknown
from fastdiff.ops.calls import Plan
from fastdiff.ops.given import several
from fastdiff.ops.in_double import gradients_in_double, results_in_double
from fastdiff.ops.op import Gradients, Op, Tensors
from fastdiff.ops.tensors import TYPES, address, check_tensor, contiguous, layout, wrong_eps
from fastdiff.runtime.memory import empty_like
from fastdiff.runtime.native import core

ACTIVATIONS = ("silu", "none")
_FEW = 1 << 17


class Arguments(NamedTuple):
    """The signature, once. skip: what is concatenated to x along the channels."""

    x: Tensor
    num_groups: int
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5
    scale: Tensor | None = None
    shift: Tensor | None = None
    activation: str = "silu"
    skip: Tensor | None = None


class GroupNormSilu(Op[Arguments]):
    """`group_norm_silu`."""

    name = "group_norm_silu"

    def __call__(
        self,
        x: Tensor | Sequence[Tensor],
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

        x: (N, C, ...), float32, bfloat16, float16 or float64, or several of them that are concatenated along C: two
        channels-last maps are read where they are by the kernel on a GPU. num_groups divides C. weight, bias: (C,).
        scale, shift: (N, C) or (N, C, 1, ...), each optional. activation: "silu", or None for act(y) = y. Statistics
        and sums are in float32 (float64 for float64), and rounded once.

        Returns x's shape and dtype. Channels-last inputs (4 or 5 dimensions) give channels-last results and are not
        copied; others give contiguous ones. Differentiable. Raises ValueError where shapes do not fit or for an unknown
        activation, TypeError for mixed dtypes.
        """
        skip = None
        if not isinstance(x, Tensor):
            x = several("x", x)
            x, skip = (x[0], x[1]) if len(x) == 2 else (torch.cat(tuple(x), 1), None)
        return self.run(Arguments(x, num_groups, weight, bias, eps, scale, shift, activation or "none", skip))

    def reference(self, a: Arguments, inplace: bool = False) -> Tensor:
        form, a = layout(a.x, a.skip), joined(a)
        y = F.group_norm(a.x, a.num_groups, a.weight, a.bias, a.eps)
        per_channel = (*a.x.shape[:2], *[1] * (a.x.ndim - 2))
        if a.scale is not None:
            y = y * (1 + a.scale.reshape(per_channel))
        if a.shift is not None:
            y = y + a.shift.reshape(per_channel)
        y = F.silu(y) if a.activation == "silu" else y
        return y.contiguous(memory_format=form)

    def check(self, a: Arguments) -> None:
        x, num_groups, weight, bias, eps, scale, shift, activation, skip = a
        if x.ndim < 2:
            raise ValueError(f"x must be (N, C, ...), got {tuple(x.shape)}")
        samples, channels, *pixels = x.shape
        if skip is not None:
            expect(skip.ndim == x.ndim, f"x must be (N, C, ...), got {tuple(x.shape)} and {tuple(skip.shape)}")
            check_tensor("the second x", skip, x, (samples, skip.shape[1], *pixels))
            channels += skip.shape[1]
        if num_groups < 1 or channels < 1 or channels % num_groups != 0:
            raise ValueError(f"num_groups must divide the channels of x {tuple(x.shape)}, got {num_groups}")
        if samples > 0 and 0 in pixels:
            raise ValueError(f"x has no pixels: {tuple(x.shape)}")
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        if not eps >= 0:
            raise wrong_eps(eps)
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

    def slower_backward(self, a: Arguments) -> str | None:
        # torch reads and writes x once more for each of scale and shift
        if a.x.numel() < (_FEW if a.scale is None and a.shift is None else _FEW // 4):
            return "a gradient is wanted, and with so few numbers the calls from Python take longer than the work"
        return None

    def kernel(self, a: Arguments) -> Tensor:
        if a.skip is not None:
            a = joined(a)
        x, num_groups, weight, bias, eps, scale, shift, activation, _ = a
        shape, form = x.shape, layout(x)
        samples, channels = shape[0], shape[1]
        x = x.contiguous(memory_format=form)
        out = empty_like(x, form)
        weight = None if weight is None else weight.contiguous()
        bias = None if bias is None else bias.contiguous()
        scale, shift = _vectors(scale), _vectors(shift)
        huge = core.group_norm_silu(
            TYPES[x.dtype], out.data_ptr(), x.data_ptr(), address(weight), address(bias),
            (address(scale), channels, 0), (address(shift), channels, 0), samples, channels,
            x.numel() // (samples * channels or 1), num_groups, form is not torch.contiguous_format,
            activation == "silu", eps, torch.get_num_threads(),
        )  # fmt: skip
        # No lambda, which would make num_groups a cell in every call.
        return results_in_double(self, a, partial(_centered, num_groups)) if huge else out

    def fake(self, a: Arguments) -> Tensor:
        if a.skip is None:
            return torch.empty_like(a.x, memory_format=layout(a.x))
        shape = (a.x.shape[0], a.x.shape[1] + a.skip.shape[1], *a.x.shape[2:])
        return a.x.new_empty(shape).contiguous(memory_format=layout(a.x, a.skip))

    def empty_gradients(self, a: Arguments) -> list[Tensor | None]:
        """Of the tensors; that of x in x's layout."""
        return [self.fake(a), *super().empty_gradients(a)[1:]]

    def recording(self, a: Arguments) -> Arguments:
        return joined(a)

    def undifferentiated(self, a: Arguments) -> str | None:
        return None if a.skip is None else "x and what is beside it are two tensors"

    def kernel_backward(self, a: Arguments, gradients: Tensors, kept: Tensors) -> Gradients:
        found = [empty_like(a.x, layout(a.x)), *super().empty_gradients(a)[1:]]
        samples, channels = a.x.shape[:2]
        form = layout(a.x)
        x, gradient = a.x.contiguous(memory_format=form), gradients[0].contiguous(memory_format=form)
        weight, bias, scale, shift = contiguous(a.weight), contiguous(a.bias), _vectors(a.scale), _vectors(a.shift)
        huge = core.group_norm_silu_backward(
            TYPES[x.dtype], [address(t) for t in found[:5]], gradient.data_ptr(), x.data_ptr(), address(weight),
            address(bias), (address(scale), channels, 0), (address(shift), channels, 0),
            (samples, channels, x.numel() // max(1, samples * channels), a.num_groups),
            form is not torch.contiguous_format, a.activation == "silu", a.eps, torch.get_num_threads(),
        )  # fmt: skip
        return gradients_in_double(self, a, gradients) if huge else found

    def triton_limits(self, a: Arguments) -> str | None:
        numbers = a.x.numel() + (0 if a.skip is None else a.skip.numel())
        if a.x.shape[0] and numbers // a.x.shape[0] >= 2**31:
            return "Triton's kernel takes samples of less than 2^31 numbers"
        return None

    def plan(self, a: Arguments, cut: Any = None) -> Plan:
        """cut: of kernels.group_norm_silu.plan or rows_plan; by shape and device if there is none."""
        from fastdiff.kernels.group_norm_silu import Forward

        flat = self.flat(a)
        forward = Forward(*flat[:5], scale=a.scale, shift=a.shift, activation=a.activation, skip=flat.skip, cut=cut)
        if flat is a:
            return lambda a: forward(a.x, a.weight, a.bias, a.scale, a.shift, a.skip)

        def run(a: Arguments) -> Tensor:
            flat = self.flat(a)
            return forward(flat.x, a.weight, a.bias, a.scale, a.shift, flat.skip).unflatten(3, a.x.shape[3:])

        return run

    def triton_backward(self, a: Arguments, gradients: Tensors, kept: Tensors) -> Gradients:
        from fastdiff.kernels.group_norm_silu import group_norm_silu_backward as kernel

        flat = self.flat(a)
        gradient = gradients[0].reshape(flat.x.shape)
        found = kernel(gradient, *flat[:5], scale=a.scale, shift=a.shift, activation=a.activation)
        return [found["x"].view(a.x.shape), *(found.get(name) for name in ("weight", "bias", "scale", "shift", "skip"))]

    def flat(self, a: Arguments) -> Arguments:
        """The arguments with maps in four dimensions where they have five and are channels-last, as Triton's kernels
        take them."""
        if layout(a.x, a.skip) is not torch.channels_last_3d:
            return a
        return a._replace(x=a.x.flatten(3), skip=None if a.skip is None else a.skip.flatten(3))


def _vectors(tensor: Tensor | None) -> Tensor | None:
    """(N, C), contiguous."""
    return None if tensor is None else tensor.flatten(1).contiguous()


def joined(a: Arguments) -> Arguments:
    """The arguments with x and skip in one, in the layout of the result."""
    if a.skip is None:
        return a
    return a._replace(x=torch.cat((a.x, a.skip), 1).contiguous(memory_format=layout(a.x, a.skip)), skip=None)


def _centered(num_groups: int, x: Tensor) -> Tensor:
    """Without the first number of each group."""
    width = x.shape[1] // num_groups
    first = x[:, ::width].flatten(2)[..., 0] if x.ndim > 2 else x[:, ::width]
    return x - first.repeat_interleave(width, 1).reshape(*x.shape[:2], *[1] * (x.ndim - 2))


group_norm_silu = GroupNormSilu()
