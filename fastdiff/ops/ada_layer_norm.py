"""adaLN: layer norm, then modulation by a condition. Peebles & Xie 2023 (DiT), Section 3.2."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops.calls import Plan
from fastdiff.ops.in_double import gradients_in_double, results_in_double
from fastdiff.ops.op import A, Gradients, Op, Tensors, runs_on_triton
from fastdiff.ops.tensors import TYPES, address, check_tensor, contiguous, dense, rows, wrong_eps
from fastdiff.runtime.memory import empty_like
from fastdiff.runtime.native import core

MAX_CHANNELS = 16384  # that Triton's kernel takes: a row stays in registers
FEW = 1 << 15


class Arguments(NamedTuple):
    """The signature, once."""

    x: Tensor
    scale: Tensor
    shift: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-6


class LayerNorm(Op[A]):
    """What the layer norms of tokens have in common; their first tensor is (B, S, C)."""

    def slower_backward(self, a: A) -> str | None:
        if a[0].numel() < FEW:
            return "a gradient is wanted, and with so few numbers the calls from Python take longer than the work"
        reason = self.undifferentiated(a)
        return None if reason is None else f"a gradient is wanted, and {reason}"

    def triton_limits(self, a: A) -> str | None:
        return None if a[0].shape[2] <= MAX_CHANNELS else f"Triton's kernel takes up to {MAX_CHANNELS} channels"


class AdaLayerNorm(LayerNorm[Arguments]):
    """`ada_layer_norm`."""

    name = "ada_layer_norm"

    def __call__(
        self,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        *,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-6,
    ) -> Tensor:
        """(1 + scale) LN(x) + shift, with LN(x) = (x - mean) / sqrt(variance + eps) * weight + bias over the channels.

        x: (B, S, C), float32, bfloat16, float16 or float64, any strides. scale, shift: (B, 1, C) or (B, S, C). weight,
        bias: (C,). Strided views whose last dimension is contiguous, such as those of `chunk(6, dim=-1)`, are read in
        place. Statistics and sums are in float32 (float64 for float64), and rounded once.

        Returns (B, S, C), contiguous, in x's dtype. Differentiable. Raises ValueError where shapes do not fit,
        TypeError for mixed dtypes.
        """
        return self.run(Arguments(x, scale, shift, weight, bias, eps))

    def reference(self, a: Arguments, inplace: bool = False) -> Tensor:
        y = F.layer_norm(a.x, a.x.shape[-1:], a.weight, a.bias, a.eps) * (1 + a.scale) + a.shift
        return y.contiguous()

    def check(self, a: Arguments) -> None:
        x, scale, shift, weight, bias, eps = a
        shape = x.shape
        if len(shape) != 3 or shape[2] == 0:
            raise ValueError(f"x must be (B, S, C) and have channels, got {tuple(shape)}")
        if bias is not None and weight is None:
            raise ValueError("bias needs weight")
        if not eps >= 0:
            raise wrong_eps(eps)
        batch, _, channels = shape
        row = (batch, 1, channels)
        check_tensor("scale", scale, x, row, shape)
        check_tensor("shift", shift, x, row, shape)
        if weight is not None:
            check_tensor("weight", weight, x, (channels,))
        if bias is not None:
            check_tensor("bias", bias, x, (channels,))

    def kernel(self, a: Arguments) -> Tensor:
        x, scale, shift, weight, bias, eps = a
        held: list[Tensor] = []  # copies, until the kernel has run
        batch, tokens, channels = x.shape
        out = empty_like(x)
        weight = None if weight is None else weight.contiguous()
        bias = None if bias is None else bias.contiguous()
        huge = core.ada_layer_norm(
            TYPES[x.dtype], out.data_ptr(), rows(x, held), rows(scale, held), rows(shift, held),
            0 if weight is None else weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
            batch, tokens, channels, eps, torch.get_num_threads(),
        )  # fmt: skip
        return results_in_double(self, a, centered) if huge else out

    def fake(self, a: Arguments) -> Tensor:
        return torch.empty_like(a.x, memory_format=torch.contiguous_format)

    def undifferentiated(self, a: Arguments) -> str | None:
        if runs_on_triton(a.x) or (a.scale.shape[1] == 1 and a.shift.shape[1] == 1):
            return None
        return "scale or shift differ from row to row, for which it has no kernel"

    def kernel_backward(self, a: Arguments, gradients: Tensors, kept: Tensors) -> Gradients:
        held: list[Tensor] = []
        weight, bias = contiguous(a.weight), contiguous(a.bias)
        found = [empty_like(a.x), *self.empty_gradients(a)[1:]]
        huge = core.ada_layer_norm_backward(
            TYPES[a.x.dtype], [address(t) for t in found], rows(gradients[0], held), rows(a.x, held),
            rows(a.scale, held), rows(a.shift, held), address(weight), address(bias), a.x.shape, a.eps,
            torch.get_num_threads(),
        )  # fmt: skip
        return gradients_in_double(self, a, gradients) if huge else found

    def plan(self, a: Arguments, cut: Any = None) -> Plan:
        from fastdiff.kernels.ada_layer_norm import Forward

        x = _dense(a)
        as_it_is = all(one is other for one, other in zip(a, x))
        launch = Forward(x.x, scale=x.scale, shift=x.shift, weight=x.weight, bias=x.bias, eps=x.eps, cut=cut)

        def run(a: Arguments) -> Tensor:
            x, scale, shift, weight, bias, _ = a if as_it_is else _dense(a)
            return launch(x, None, None, scale, shift, weight, bias)[1]

        return run

    def triton_backward(self, a: Arguments, gradients: Tensors, kept: Tensors) -> Gradients:
        from fastdiff.kernels.ada_layer_norm import ada_layer_norm_backward as kernel

        x, scale, shift, gradient = dense(a.x), dense(a.scale), dense(a.shift), dense(gradients[0])
        found = kernel(gradient, x, scale, shift, weight=contiguous(a.weight), bias=contiguous(a.bias), eps=a.eps)
        return [found.get(name) for name in ("x", "scale", "shift", "weight", "bias")]


def centered(x: Tensor) -> Tensor:
    """Without the first number of each row."""
    return x - x[..., :1]


def _dense(a: Arguments) -> Arguments:
    """With copies of what Triton's kernel cannot read in place."""
    return Arguments(dense(a.x), dense(a.scale), dense(a.shift), contiguous(a.weight), contiguous(a.bias), a.eps)


ada_layer_norm = AdaLayerNorm()
