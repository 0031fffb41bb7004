"""adaLN: layer norm, then modulation by a condition. Peebles & Xie 2023 (DiT), Section 3.2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from fastdiff.backends import pick
from fastdiff.errors import expect
from fastdiff.native import core
from fastdiff.ops.registration import TYPES, check_tensors, register


def ada_layer_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """y = (1 + scale) LN(x) + shift; with a gate, gate * y; with a residual, residual + that.

    x, residual: (B, S, C), float32, bfloat16, float16 or float64, any strides. scale, shift, gate: (B, 1, C) or (B, S,
    C). weight, bias: (C,), of the norm. Strided views whose last dimension is contiguous, such as those of `chunk(6,
    dim=-1)`, are read in place. Statistics are in float32 (float64 for float64), the rest as well, and rounded once.
    Returns (B, S, C), contiguous, in x's dtype. Differentiable. Raises ValueError where shapes do not fit, TypeError
    for mixed dtypes.
    """
    arguments = (x, scale, shift, weight, bias, eps, gate, residual)
    _check(*arguments)
    if pick(supports(*arguments)) == "reference":
        return reference(*arguments)
    return torch.ops.fastdiff.ada_layer_norm(*arguments)


def reference(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The same in plain PyTorch."""
    y = F.layer_norm(x, x.shape[-1:], weight, bias, eps) * (1 + scale) + shift
    if gate is not None:
        y = gate * y
    return (y if residual is None else residual + y).contiguous()


def supports(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> str | None:
    """Why the compiled kernel cannot take this, or None."""
    if forward_ad._current_level >= 0:
        return "forward-mode gradients are being computed, and the operator has only backward ones"
    if x.device.type != "cpu":
        return f"x is on {x.device}, and the C++ kernel runs on the CPU"
    if x.dtype not in TYPES:
        return f"the C++ kernel takes float32, bfloat16 and float16, not {x.dtype}"
    return None


def _check(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    gate: Tensor | None,
    residual: Tensor | None,
) -> None:
    expect(x.ndim == 3, f"x must be (B, S, C), got {tuple(x.shape)}")
    batch, rows, channels = x.shape
    expect(channels > 0, f"x must have channels, got {tuple(x.shape)}")
    expect(bias is None or weight is not None, "bias needs weight")
    whole = (batch, rows, channels)
    modulation = [(batch, 1, channels), whole]
    check_tensors(
        x,
        {
            "scale": (scale, modulation),
            "shift": (shift, modulation),
            "gate": (gate, modulation),
            "residual": (residual, [whole]),
            "weight": (weight, [(channels,)]),
            "bias": (bias, [(channels,)]),
        },
    )


def _kernel(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    gate: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    _check(x, scale, shift, weight, bias, eps, gate, residual)  # whoever calls the operator by its registered name
    expect(x.dtype in TYPES, f"the kernel takes float32, bfloat16 and float16, not {x.dtype}")
    batch, rows, channels = x.shape
    out = torch.empty(x.shape, dtype=x.dtype)
    held = [t if t is None or t.stride(-1) == 1 else t.contiguous() for t in (x, scale, shift, gate, residual)]
    vectors = [t if t is None else t.contiguous() for t in (weight, bias)]
    names = ("x", "scale", "shift", "gate", "residual")
    core.ada_layer_norm(
        type=TYPES[x.dtype],
        out=out.data_ptr(),
        **{name: _rows(t) for name, t in zip(names, held)},
        weight=0 if vectors[0] is None else vectors[0].data_ptr(),
        bias=0 if vectors[1] is None else vectors[1].data_ptr(),
        batch=batch,
        rows=rows,
        channels=channels,
        eps=eps,
        num_threads=torch.get_num_threads(),
    )
    return out


def _rows(tensor: Tensor | None) -> tuple[int, int, int]:
    """(address, stride of a batch, stride of a row; 0 where the row is the same for all)."""
    if tensor is None:
        return 0, 0, 0
    return tensor.data_ptr(), tensor.stride(0), tensor.stride(1) if tensor.shape[1] > 1 else 0


def _fake(x: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


register(
    "ada_layer_norm(Tensor x, Tensor scale, Tensor shift, Tensor? weight, Tensor? bias, float eps, Tensor? gate, "
    "Tensor? residual) -> Tensor",
    kernel=_kernel,
    fake=_fake,
    reference=reference,
)
