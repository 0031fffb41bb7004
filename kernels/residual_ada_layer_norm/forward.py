"""residual_ada_layer_norm in Triton: one pass, by ada_layer_norm's kernel."""

from __future__ import annotations

from torch import Tensor

from ..ada_layer_norm.forward import forward


def residual_ada_layer_norm(
    y: Tensor, residual: Tensor, *, gate: Tensor | None = None, scale: Tensor | None = None,
    shift: Tensor | None = None, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """h = residual + gate * y and z = (1 + scale) * LN(h) + shift, both (B, S, C), for tensors that Triton can reach.

    y, residual: (B, S, C). gate, scale, shift: (B, 1, C) or (B, S, C). weight, bias: (C,), of LN. Float32, bfloat16 or
    float16, the last dimension contiguous. z is computed from h as it is stored: it equals ada_layer_norm(h).
    """
    return forward(y, residual=residual, gate=gate, scale=scale, shift=shift, weight=weight, bias=bias, eps=eps)
