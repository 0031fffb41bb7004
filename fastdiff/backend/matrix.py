"""A linear layer of a graph, with its epilogue and what it keeps of its weight."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff import backends, ops

linear: Any = importlib.import_module("fastdiff.ops.linear")  # the package has the function by this name


def _kernel_takes(*arguments: Any) -> bool:
    """Whether ops.linear would run its kernel; elsewhere the epilogue is better done in place here."""
    if arguments[0].ndim != 3 or backends.current() == "reference":
        return False
    return linear.supports(*arguments) is None and linear.faster_in_torch(*arguments) is None


class Linear(nn.Module):
    """residual + gate * activation(x weight^T + bias), each where it is given. activation: "silu", "gelu",
    "gelu_tanh"."""

    def __init__(self, activation: str | None) -> None:
        super().__init__()
        self.activation = activation

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        fused = None if self.activation == "gelu" else self.activation or "none"
        if fused is not None and _kernel_takes(x, weight, bias, gate, residual, fused):
            return ops.linear(x, weight, bias, activation=fused, gate=gate, residual=residual)
        y = F.linear(x, weight, bias)
        if self.activation == "silu":
            y = F.silu(y, inplace=True)
        elif self.activation is not None:
            y = F.gelu(y, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        if gate is not None:
            return y.mul_(gate) if residual is None else torch.addcmul(residual, y, gate, out=y)
        return y if residual is None else y.add_(residual)

    def extra_repr(self) -> str:
        return f"activation={self.activation}"
