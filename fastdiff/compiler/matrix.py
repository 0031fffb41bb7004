"""A linear layer of a graph, with its epilogue."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.runtime import choice

linear: Any = importlib.import_module("fastdiff.ops.linear")  # the package has the function by this name


def _kernel_takes(x: Tensor, weight: Tensor, *rest: Any) -> bool:
    """Whether ops.linear would run its kernel; elsewhere the epilogue is better done in place here."""
    if x.ndim != 3 or choice.current() == "reference":
        return False
    return linear.supports(x, weight, *rest) is None and linear.faster_in_torch(x, weight, *rest) is None


class Linear(nn.Module):
    """residual + gate * act(x weight^T + bias), each where it is given. activation: "none", "silu", "gelu",
    "gelu_tanh". glu: a act(b) of the halves [a, b] of x weight^T + bias."""

    def __init__(self, activation: str = "none", glu: bool = False) -> None:
        super().__init__()
        self.activation, self.glu = activation, glu

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        if _kernel_takes(x, weight, bias, gate, residual, self.activation, self.glu):
            return ops.linear(x, weight, bias, activation=self.activation, glu=self.glu, gate=gate, residual=residual)
        y = F.linear(x, weight, bias)
        value, y = y.chunk(2, -1) if self.glu else (None, y)
        if self.activation == "silu":
            y = F.silu(y, inplace=value is None)
        elif self.activation != "none":
            y = F.gelu(y, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        if value is not None:
            y = y.mul_(value) if self.activation != "none" else y * value
        if gate is not None:
            return y.mul_(gate) if residual is None else torch.addcmul(residual, y, gate, out=y)
        return y if residual is None else y.add_(residual)

    def extra_repr(self) -> str:
        return f"activation={self.activation}" + (", glu" if self.glu else "")


class Linears(nn.Module):
    """Two or three layers of one input, their results side by side. biases: which of them have one."""

    def __init__(self, biases: tuple[bool, ...]) -> None:
        super().__init__()
        self.biases = biases

    def forward(self, x: Tensor, *parameters: Tensor) -> Tensor:
        count = len(self.biases)
        weights, given = parameters[:count], iter(parameters[count:])
        return ops.linear(x, weights, [next(given) if there else None for there in self.biases])

    def extra_repr(self) -> str:
        return f"layers={len(self.biases)}"


def worth_joining(x: Any, outputs: int) -> bool:
    """Whether the kernel would take layers of this input in one, going by the sizes that are known."""
    if x.dtype is not torch.float32 or x.ndim != 3 or not x.is_cpu or not linear.core.has_linear():
        return False
    rows = x.shape[0] * x.shape[1]
    return not linear.few(rows if isinstance(rows, int) else 1 << 20, x.shape[2], outputs)


def columns(y: Tensor, start: int, size: int) -> Tensor:
    """Some columns of a result, a view."""
    return y.narrow(-1, start, size)
