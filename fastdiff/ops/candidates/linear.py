"""Of linear layers: cuBLAS with what follows in PyTorch's kernels, or in cuBLAS's own epilogue where it has one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.ops.candidates.shared import Found, default
from fastdiff.runtime.candidates import Candidate


def find(op: Any, a: Any) -> Found:
    """cuBLAS's epilogues are an activation after the bias (PyTorch offers GELU by tanh), and a sum."""
    found = default(op, a).candidates
    alone = a.weight_2 is None and a.gate is None and not a.glu and a.x.numel() > 0
    if alone and a.activation == "gelu_tanh" and a.bias is not None and a.residual is None:
        found.append(Candidate("cublas with gelu", _with_gelu))
    if alone and a.activation == "none" and a.bias is None and a.residual is not None:
        found.append(Candidate("cublas with residual", _with_residual))
    return Found(found)


def _with_gelu(a: Any) -> Tensor:
    y = torch.ops.aten._addmm_activation(a.bias, a.x.flatten(0, 1), a.weight.t(), use_gelu=True)
    return y.view(*a.x.shape[:2], -1)


def _with_residual(a: Any) -> Tensor:
    y = torch.addmm(a.residual.flatten(0, 1), a.x.flatten(0, 1), a.weight.t())
    return y.view(*a.x.shape[:2], -1)
