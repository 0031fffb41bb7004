"""What follows products in several kernels: activations, in float32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(x, activation: tl.constexpr):
    """act(x). activation: "none", "silu", "gelu", or "gelu_tanh", GELU with tanh for the normal distribution."""
    if activation == "silu":
        return x * tl.sigmoid(x)
    elif activation == "gelu":
        return 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    elif activation == "gelu_tanh":  # 0.5 (1 + tanh(u)) is the logistic function of 2 u
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        tl.static_assert(activation == "none")
        return x
