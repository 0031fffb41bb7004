"""A linear layer with its activation, gate and residual, in one pass over its result."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.backends import pick
from fastdiff.dispatch import transformed, wants_gradient
from fastdiff.memory import empty
from fastdiff.native import core
from fastdiff.ops.registration import check_tensor, register, through_reference

ACTIVATIONS = ("none", "silu", "gelu_tanh")


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """y = act(x W^T + bias); with a gate, gate * y; with a residual, residual + that.

    x: (B, S, K), float32 (other types go to PyTorch), any strides. weight: (N, K), as torch.nn.Linear has it. bias:
    (N,). activation: "none", "silu" or "gelu_tanh" (GELU in its form with tanh, Hendrycks & Gimpel 2016). gate: (B, 1,
    N) or (B, S, N). residual: (B, S, N). Returns (B, S, N), contiguous, in x's dtype. Differentiable. Raises ValueError
    where shapes do not fit and for another activation, TypeError for mixed dtypes.

    On a CPU with AMX the products are of three bfloat16 parts of each number, all that matter of them: the precision is
    that of float32 (Henry, Tang & Heinecke 2019, https://arxiv.org/abs/1904.06376). Elsewhere PyTorch computes.
    """
    arguments = (x, weight, bias, gate, residual, activation)
    _check(*arguments)
    if pick(supports(*arguments), faster_in_torch(*arguments)) == "reference":
        return reference(*arguments)
    return _call(*arguments)


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """The same in plain PyTorch."""
    y = F.linear(x, weight, bias)
    if activation == "silu":
        y = F.silu(y)
    elif activation == "gelu_tanh":
        y = F.gelu(y, approximate="tanh")
    if gate is not None:
        y = gate * y
    return y if residual is None else residual + y


def supports(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> str | None:
    """Why the compiled kernel cannot take this, or None."""
    if (reason := transformed()) is not None:
        return reason
    if x.device.type != "cpu":
        return f"x is on {x.device}, and the C++ kernel runs on the CPU"
    if x.dtype is not torch.float32:
        return f"the C++ kernel takes float32, not {x.dtype}"
    if not core.has_linear():
        return f"the C++ kernel needs AMX, and the instruction set in use is {core.isa()}"
    return None


def faster_in_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> str | None:
    """Why torch is faster with this, so that it runs unless the kernel is insisted on; or None."""
    if wants_gradient((x, weight, bias, gate, residual)):
        return "the backward of the kernel goes through torch's own forward, which a gradient needs anyway"
    rows = x.shape[0] * x.shape[1]
    outputs, inputs = weight.shape
    if rows < _FEW_ROWS or inputs < _FEW_INPUTS or outputs < _FEW_OUTPUTS:
        few = f"{_FEW_ROWS} rows, {_FEW_INPUTS} inputs or {_FEW_OUTPUTS} outputs"
        return f"packing takes longer than it gains with fewer than {few}"
    return None


_FEW_ROWS, _FEW_INPUTS, _FEW_OUTPUTS = 96, 64, 512


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor | None, residual: Tensor | None, activation: str
) -> None:
    if x.ndim != 3 or weight.ndim != 2 or weight.shape[1] != x.shape[2]:
        raise ValueError(f"x is (B, S, K) and weight (N, K), not {tuple(x.shape)} and {tuple(weight.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    batch, rows, _ = x.shape
    outputs = weight.shape[0]
    check_tensor("weight", weight, x, weight.shape)
    if bias is not None:
        check_tensor("bias", bias, x, (outputs,))
    if gate is not None:
        check_tensor("gate", gate, x, (batch, 1, outputs), (batch, rows, outputs))
    if residual is not None:
        check_tensor("residual", residual, x, (batch, rows, outputs))


def _kernel(
    x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:
    if (
        supports(x, weight, bias, gate, residual, activation) is not None
    ):  # torch.ops.fastdiff.linear, called by its name
        return reference(x, weight, bias, gate, residual, activation).contiguous()
    batch, rows, inputs = x.shape
    outputs = weight.shape[0]
    x, weight = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, weight))
    gate, residual = (t if t is None or t.stride(-1) == 1 else t.contiguous() for t in (gate, residual))
    bias = bias if bias is None else bias.contiguous()
    out = empty((batch, rows, outputs), dtype=x.dtype)
    packed = empty((core.linear_packed_bytes(batch * rows, inputs) // x.element_size(),), dtype=x.dtype)
    core.linear(
        out.data_ptr(),
        packed.data_ptr(),
        _rows(x),
        weight.data_ptr(),
        weight.stride(0),
        0 if bias is None else bias.data_ptr(),
        _rows(gate),
        _rows(residual),
        activation,
        (batch, rows, inputs, outputs),
        torch.get_num_threads(),
    )
    return out


def _rows(tensor: Tensor | None) -> tuple[int, int, int]:
    """(address, stride of a batch, of a row, 0 where there is only one for all)."""
    if tensor is None:
        return 0, 0, 0
    return tensor.data_ptr(), tensor.stride(0), tensor.stride(1) if tensor.shape[1] > 1 else 0


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:
    return x.new_empty((*x.shape[:2], weight.shape[0]))


_call = register(
    "linear(Tensor x, Tensor weight, Tensor? bias, Tensor? gate, Tensor? residual, str activation) -> Tensor",
    kernel=_kernel,
    check=_check,
    fake=_fake,
    **through_reference(reference),
)
