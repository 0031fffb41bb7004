"""The residual before an adaLN: h = residual + gate * y, then the modulated norm of h. The end of one branch of a block
and the start of the next: Peebles & Xie 2023 (DiT), Figure 3."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops.ada_layer_norm import LayerNorm, centered
from fastdiff.ops.calls import Plan
from fastdiff.ops.in_double import gradients_in_double, results_in_double
from fastdiff.ops.op import Gradients, Tensors, runs_on_triton
from fastdiff.ops.tensors import TYPES, address, check_tensor, contiguous, dense, rows, wrong_eps
from fastdiff.runtime.memory import empty_like
from fastdiff.runtime.native import core


class Arguments(NamedTuple):
    """The signature, once."""

    y: Tensor
    residual: Tensor
    gate: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-6


class ResidualAdaLayerNorm(LayerNorm[Arguments]):
    """`residual_ada_layer_norm`."""

    name = "residual_ada_layer_norm"
    results = "(Tensor, Tensor)"
    keeps = (0,)

    def __call__(
        self,
        y: Tensor,
        residual: Tensor,
        gate: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        *,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-6,
    ) -> tuple[Tensor, Tensor]:
        """h = residual + gate * y, and z = (1 + scale) LN(h) + shift, with LN(h) = (h - mean) / sqrt(variance + eps) *
        weight + bias over the channels. Without scale and shift it is the affine layer norm of a residual stream.

        y, residual: (B, S, C), float32, bfloat16, float16 or float64, any strides. gate, scale, shift: (B, 1, C) or (B,
        S, C), each optional. weight, bias: (C,). Strided views whose last dimension is contiguous, such as those of
        `chunk(6, dim=-1)`, are read in place. Sums and statistics are in float32 (float64 for float64); z is computed
        of h as it is returned.

        Returns (h, z), each (B, S, C), contiguous, in y's dtype. Differentiable. Raises ValueError where shapes do not
        fit, TypeError for mixed dtypes.
        """
        return self.run(Arguments(y, residual, gate, scale, shift, weight, bias, eps))

    def reference(self, a: Arguments, inplace: bool = False) -> tuple[Tensor, Tensor]:
        h = a.residual + (a.y if a.gate is None else a.gate * a.y)
        z = F.layer_norm(h, h.shape[-1:], a.weight, a.bias, a.eps)
        if a.scale is not None:
            z = z * (1 + a.scale)
        if a.shift is not None:
            z = z + a.shift
        return h.contiguous(), z.contiguous()

    def check(self, a: Arguments) -> None:
        y = a.y
        if a.bias is not None and a.weight is None:
            raise ValueError("bias needs weight")
        if not a.eps >= 0:
            raise wrong_eps(a.eps)
        shape = y.shape
        if len(shape) != 3 or shape[2] == 0:
            raise ValueError(f"y must be (B, S, C) and have channels, got {tuple(shape)}")
        check_tensor("residual", a.residual, y, shape, beside="y")
        row, vector = (shape[0], 1, shape[2]), shape[2:]
        for name, tensor in (("gate", a.gate), ("scale", a.scale), ("shift", a.shift)):
            if tensor is not None:
                check_tensor(name, tensor, y, row, shape, beside="y")
        for name, tensor in (("weight", a.weight), ("bias", a.bias)):
            if tensor is not None:
                check_tensor(name, tensor, y, vector, beside="y")

    def kernel(self, a: Arguments) -> tuple[Tensor, Tensor]:
        y, residual, gate, scale, shift, weight, bias, eps = a
        held: list[Tensor] = []  # copies, until the kernel has run
        h, z = empty_like(y), empty_like(y)
        weight, bias = contiguous(weight), contiguous(bias)
        huge = core.residual_ada_layer_norm(
            TYPES[y.dtype], h.data_ptr(), z.data_ptr(), rows(y, held), rows(residual, held), rows(gate, held),
            rows(scale, held), rows(shift, held), address(weight), address(bias), *y.shape, eps,
            torch.get_num_threads(),
        )  # fmt: skip
        if huge:  # h is right
            norm = Arguments(h, torch.zeros_like(h), None, scale, shift, weight, bias, eps)
            _, z = results_in_double(self, norm, centered)
        return h, z

    def fake(self, a: Arguments) -> tuple[Tensor, Tensor]:
        h, z = (torch.empty_like(a.y, memory_format=torch.contiguous_format) for _ in range(2))
        return h, z

    def undifferentiated(self, a: Arguments) -> str | None:
        if runs_on_triton(a.y) or all(t is None or t.shape[1] == 1 for t in (a.gate, a.scale, a.shift)):
            return None
        return "gate, scale or shift differ from row to row, for which it has no kernel"

    def kernel_backward(self, a: Arguments, gradients: Tensors, kept: Tensors) -> Gradients:
        held: list[Tensor] = []
        weight, bias = contiguous(a.weight), contiguous(a.bias)
        found = [empty_like(a.y), empty_like(a.y), *self.empty_gradients(a)[2:]]
        huge = core.residual_ada_layer_norm_backward(
            TYPES[a.y.dtype], [address(t) for t in found],
            *(rows(t, held) for t in (*gradients, *kept, a.y, a.gate, a.scale, a.shift)),
            address(weight), address(bias), a.y.shape, a.eps, torch.get_num_threads(),
        )  # fmt: skip
        return gradients_in_double(self, a, gradients) if huge else found

    def plan(self, a: Arguments, cut: Any = None) -> Plan:
        from fastdiff.kernels.ada_layer_norm import Forward

        x = _dense(a)
        as_it_is = all(one is other for one, other in zip(a, x))
        launch = Forward(
            x.y, residual=x.residual, gate=x.gate, scale=x.scale, shift=x.shift, weight=x.weight, bias=x.bias,
            eps=x.eps, cut=cut,
        )  # fmt: skip

        def run(a: Arguments) -> tuple[Tensor, Tensor]:
            y, residual, gate, scale, shift, weight, bias, _ = a if as_it_is else _dense(a)
            return launch(y, residual, gate, scale, shift, weight, bias)

        return run

    def triton_backward(self, a: Arguments, gradients: Tensors, kept: Tensors) -> Gradients:
        from fastdiff.kernels.residual_ada_layer_norm import residual_ada_layer_norm_backward as kernel

        found = kernel(dense(gradients[0]), dense(gradients[1]), kept[0], dense(a.y), **_options(a))
        return [found.get(name) for name in ("y", "residual", "gate", "scale", "shift", "weight", "bias")]


def _dense(a: Arguments) -> Arguments:
    """With copies of what Triton's kernel cannot read in place."""
    return Arguments(dense(a.y), dense(a.residual), **_options(a))


def _options(a: Arguments) -> dict[str, Any]:
    vectors = {"weight": contiguous(a.weight), "bias": contiguous(a.bias), "eps": a.eps}
    given = (("gate", a.gate), ("scale", a.scale), ("shift", a.shift))
    return vectors | {name: t if t is None else dense(t) for name, t in given}


residual_ada_layer_norm = ResidualAdaLayerNorm()
