"""A linear layer with its activation, gate and residual, in one pass over its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.ops.registration import check_tensor, register, through_reference
from fastdiff.runtime.choice import pick
from fastdiff.runtime.dispatcher import transformed, wants_gradient
from fastdiff.runtime.memory import empty
from fastdiff.runtime.native import core

ACTIVATIONS = ("none", "silu", "gelu", "gelu_tanh")


def linear(
    x: Tensor,
    weight: Tensor | Sequence[Tensor],
    bias: Tensor | Sequence[Tensor | None] | None = None,
    *,
    activation: str = "none",
    glu: bool = False,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """y = act(x W^T + bias); with a gate, gate * y; with a residual, residual + that.

    x: (B, S, K), float32 (other types go to PyTorch), any strides. weight: (N, K), as torch.nn.Linear has it, or
    several of these, side by side in the result, with as many biases or None; up to three are read where they are.
    bias: (N,). activation: "none", "silu", "gelu" (x times the normal distribution function, Hendrycks & Gimpel 2016)
    or "gelu_tanh" (their approximation of it). glu: y = a act(b) instead, where [a, b] are the halves of x W^T + bias
    (Shazeer 2020, "GLU Variants Improve Transformer"), and N is half of W's rows. gate: (B, 1, N) or (B, S, N).
    residual: (B, S, N). Returns (B, S, N), contiguous, in x's dtype. Differentiable. Raises ValueError where shapes do
    not fit and for another activation, TypeError for mixed dtypes.

    On a CPU with AMX the products are of three bfloat16 parts of each number, all that matter of them: the precision is
    that of float32 (Henry, Tang & Heinecke 2019, https://arxiv.org/abs/1904.06376). Elsewhere PyTorch computes.
    """
    first, first_bias, *more = _one_by_one(weight, bias)
    arguments: tuple[Any, ...] = (x, first, first_bias, gate, residual, activation, glu, *more)
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
    glu: bool = False,
    weight_2: Tensor | None = None,
    bias_2: Tensor | None = None,
    weight_3: Tensor | None = None,
    bias_3: Tensor | None = None,
) -> Tensor:
    """The same in plain PyTorch."""
    pairs = _pairs(weight, bias, weight_2, bias_2, weight_3, bias_3)
    y = F.linear(x, weight, bias) if len(pairs) == 1 else torch.cat([F.linear(x, w, b) for w, b in pairs], -1)
    value, y = y.chunk(2, -1) if glu else (None, y)
    if activation == "silu":
        y = F.silu(y)
    elif activation != "none":
        y = F.gelu(y, approximate="tanh" if activation == "gelu_tanh" else "none")
    if value is not None:
        y = value * y
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
    glu: bool = False,
    *more: Tensor | None,
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
    glu: bool = False,
    *more: Tensor | None,
) -> str | None:
    """Why torch is faster with this, so that it runs unless the kernel is insisted on; or None."""
    if wants_gradient((x, weight, bias, gate, residual, *more)):
        return "the backward of the kernel goes through torch's own forward, which a gradient needs anyway"
    rows = x.shape[0] * x.shape[1]
    outputs, inputs = weight.shape
    outputs += sum(each.shape[0] for each in more[::2] if each is not None)
    if few(rows, inputs, outputs):
        least = f"{_FEW_ROWS} rows, {_FEW_INPUTS} inputs or {_FEW_OUTPUTS} outputs"
        return f"packing takes longer than it gains with fewer than {least}"
    return None


def few(rows: int, inputs: int, outputs: int) -> bool:
    """Whether a product is too small for its factors to be packed."""
    return rows < _FEW_ROWS or inputs < _FEW_INPUTS or outputs < _FEW_OUTPUTS


_FEW_ROWS, _FEW_INPUTS, _FEW_OUTPUTS = 96, 64, 256
_SIDE = 16  # columns of a tile, which are of one weight


def _pairs(*weights_and_biases: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """Each weight that is there with its bias."""
    weights, biases = weights_and_biases[::2], weights_and_biases[1::2]
    return [(weight, bias) for weight, bias in zip(weights, biases) if weight is not None]


def _one_by_one(weight: Tensor | Sequence[Tensor], bias: Any) -> list[Any]:
    """Three weights, each followed by its bias, and None where there are fewer."""
    if isinstance(weight, Tensor):
        return [weight, bias, None, None, None, None]
    weights = list(weight)
    biases = [None] * len(weights) if bias is None else list(bias)
    expect(len(weights) > 0, "weight must be a tensor or several of them, got none")
    expect(len(weights) == len(biases), f"bias must be as many as weights, {len(weights)}, got {len(biases)}")
    pairs = list(zip(weights, biases))
    found = [each for pair in (pairs if len(pairs) <= 3 else _in_one(pairs)) for each in pair]
    return [*found, *[None] * (6 - len(found))]


def _in_one(pairs: list[tuple[Tensor, Tensor | None]]) -> list[tuple[Tensor, Tensor | None]]:
    """The same as a single weight and bias."""
    whole = [w.new_zeros(w.shape[:1]) if b is None else b for w, b in pairs]
    return [(torch.cat([w for w, _ in pairs]), None if all(b is None for _, b in pairs) else torch.cat(whole))]


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    activation: str,
    glu: bool = False,
    *more: Tensor | None,
) -> None:
    if x.ndim != 3 or weight.ndim != 2 or weight.shape[1] != x.shape[2]:
        raise ValueError(f"x is (B, S, K) and weight (N, K), not {tuple(x.shape)} and {tuple(weight.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    batch, rows, _ = x.shape
    outputs = 0
    for each, its_bias in _pairs(weight, bias, *more):
        check_tensor("weight", each, x, (each.shape[0], x.shape[2]))
        if its_bias is not None:
            check_tensor("bias", its_bias, x, each.shape[:1])
        outputs += each.shape[0]
    if glu:
        expect(outputs % 2 == 0, f"weight must have an even number of rows for a GLU, got {outputs}")
        outputs //= 2
    if gate is not None:
        check_tensor("gate", gate, x, (batch, 1, outputs), (batch, rows, outputs))
    if residual is not None:
        check_tensor("residual", residual, x, (batch, rows, outputs))


def _kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    activation: str,
    glu: bool = False,
    *more: Tensor | None,
) -> Tensor:
    if supports(x, weight, bias, gate, residual, activation) is not None:
        # torch.ops.fastdiff.linear, called by its name
        return reference(x, weight, bias, gate, residual, activation, glu, *more).contiguous()
    batch, rows, inputs = x.shape
    pairs = _pairs(weight, bias, *more)
    outputs = sum(w.shape[0] for w, _ in pairs) // (2 if glu else 1)
    if len(pairs) > 1 and (any(w.shape[0] % _SIDE for w, _ in pairs[:-1]) or (glu and outputs % _SIDE)):
        pairs = _in_one(pairs)
    pairs = [(_dense(w), None if b is None else b.contiguous()) for w, b in pairs]
    x = _dense(x)
    gate, residual = (t if t is None else _dense(t) for t in (gate, residual))
    out = empty((batch, rows, outputs), dtype=x.dtype)
    packed = empty((core.linear_packed_bytes(batch * rows, inputs, outputs, glu) // x.element_size(),), dtype=x.dtype)
    core.linear(
        out.data_ptr(),
        packed.data_ptr(),
        _rows(x),
        [(w.data_ptr(), 0 if b is None else b.data_ptr(), w.stride(0), w.shape[0]) for w, b in pairs],
        _rows(gate),
        _rows(residual),
        activation,
        glu,
        (batch, rows, inputs, outputs),
        torch.get_num_threads(),
    )
    return out


def _dense(tensor: Tensor) -> Tensor:
    """The tensor with its last dimension contiguous."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _rows(tensor: Tensor | None) -> tuple[int, int, int]:
    """(address, stride of a batch, of a row, 0 where there is only one for all)."""
    if tensor is None:
        return 0, 0, 0
    return tensor.data_ptr(), tensor.stride(0), tensor.stride(1) if tensor.shape[1] > 1 else 0


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    activation: str,
    glu: bool = False,
    *more: Tensor | None,
) -> Tensor:
    outputs = sum(each.shape[0] for each, _ in _pairs(weight, bias, *more))
    return x.new_empty((*x.shape[:2], outputs // 2 if glu else outputs))


_call = register(
    "linear(Tensor x, Tensor weight, Tensor? bias, Tensor? gate, Tensor? residual, str activation, bool glu=False, "
    "Tensor? weight_2=None, Tensor? bias_2=None, Tensor? weight_3=None, Tensor? bias_3=None) -> Tensor",
    kernel=_kernel,
    check=_check,
    fake=_fake,
    **through_reference(reference),
)
