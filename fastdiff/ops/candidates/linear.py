"""Of linear layers: cuBLAS with what follows in PyTorch's kernels, in one of ours, or in cuBLAS's own epilogue."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops.candidates.shared import Found, beyond_pointwise, torch_candidate
from fastdiff.runtime.candidates import Candidate
from fastdiff.runtime.dispatcher import is_memory

_GATED = "cublas, gate by triton"


def find(op: Any, a: Any) -> Found:
    """cuBLAS's epilogues are an activation after the bias (PyTorch offers GELU by tanh), and a sum. A gated unit has a
    kernel of ours, which reads both halves once."""
    found = [torch_candidate(op)]
    absent: dict[str, str] = {}
    alone = a.weight_2 is None and a.gate is None and a.x.numel() > 0
    if alone and a.glu and a.activation != "none" and a.residual is None:
        if (reason := beyond_pointwise(a.x)) is not None:
            absent[_GATED] = reason
        else:
            found.insert(0, Candidate(_GATED, lambda a: _gated(op, a)))
    elif alone and a.activation == "gelu_tanh" and a.bias is not None and a.residual is None:
        found.append(Candidate("cublas with gelu", _with_gelu))
    elif alone and a.activation == "none" and not a.glu and a.bias is None and a.residual is not None:
        found.append(Candidate("cublas with residual", _with_residual))
    return Found(found, absent=absent)


def _gated(op: Any, a: Any) -> Tensor:
    from fastdiff.kernels.pointwise import gated

    y = F.linear(a.x, a.weight, a.bias)
    return gated(y, a.activation) if y.is_contiguous() and is_memory(y) else op.follow(y, a, inplace=True)


def _with_gelu(a: Any) -> Tensor:
    y = torch.ops.aten._addmm_activation(a.bias, a.x.flatten(0, 1), a.weight.t(), use_gelu=True)
    return y.view(*a.x.shape[:2], -1)


def _with_residual(a: Any) -> Tensor:
    y = torch.addmm(a.residual.flatten(0, 1), a.x.flatten(0, 1), a.weight.t())
    return y.view(*a.x.shape[:2], -1)
