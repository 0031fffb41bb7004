"""Gradients of residual_ada_layer_norm in Triton, by ada_layer_norm's kernel."""

from __future__ import annotations

from torch import Tensor

from ..ada_layer_norm.backward import backward


def residual_ada_layer_norm_backward(
    grad_h: Tensor | None, grad_z: Tensor, h: Tensor, y: Tensor, *, gate: Tensor | None = None,
    scale: Tensor | None = None, shift: Tensor | None = None, weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-6,
) -> dict[str, Tensor]:  # fmt: skip
    """Gradients of y, residual and the other arguments that are given, by name, from those of h and z.

    grad_h, grad_z: (B, S, C), the last dimension contiguous; grad_h may be None for 0. h: as the forward returned it.
    Others as of residual_ada_layer_norm. Sums are in float32 and do not change from run to run.
    """
    found = backward(
        grad_z, h, grad_h=grad_h, y=y, gate=gate, scale=scale, shift=shift, weight=weight, bias=bias, eps=eps
    )
    return {"residual": found.pop("x")} | found
