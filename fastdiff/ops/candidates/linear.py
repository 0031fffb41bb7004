"""Of linear layers: cuBLAS with what follows in PyTorch's kernels, in one of ours, or in cuBLAS's own epilogue; and our
own product, with all that follows in it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops.candidates.shared import Found, beyond_pointwise, torch_candidate
from fastdiff.runtime.candidates import Candidate
from fastdiff.runtime.device import properties
from fastdiff.runtime.dispatcher import is_memory

_GATED, _OURS = "cublas, gate by triton", "triton"
_SHORT_UNIT, _SHORT = 640, 1152  # inputs up to which a draft of ours was quicker: gated units; with gate or residual
_FEW, _MANY = 8, 1 << 20  # rows, and numbers of a weight, with which reading it is all that counts
_TILES = 3  # that are timed beside the kernel's own choice
_CODES = {"none": 0, "silu": 1, "gelu": 2, "gelu_tanh": 3}


def find(op: Any, a: Any) -> Found:
    """cuBLAS's epilogues are an activation after the bias (PyTorch offers GELU by tanh), and a sum. A gated unit has a
    kernel of ours behind cuBLAS, which reads both halves once, and all that follows is part of our own product. Only on
    sm_90 is ours preferred where nothing is timed: elsewhere it was not measured."""
    plain = torch_candidate(op)
    if a.weight_2 is not None or not a.x.numel():
        return Found([plain])
    rows, inputs = a.x.shape[0] * a.x.shape[1], a.x.shape[2]
    few = not a.glu and rows <= _FEW and a.weight.numel() >= _MANY
    unit = a.glu and a.activation != "none"
    after = a.gate is not None or a.residual is not None
    theirs, ours = _cublas(a), []
    absent: dict[str, str] = {}
    reason = beyond_pointwise(a.x)
    if unit and not after:
        if reason is None:
            theirs.insert(0, Candidate(_GATED, lambda a: _gated(op, a)))
        else:
            absent[_GATED] = reason
    if few or a.glu or after or a.activation != "none":
        reason = reason or _left_to_cublas(a)
        if reason is None:
            ours = _triton(a, few)
        else:
            absent[_OURS] = reason
    preferred = few or (inputs <= _SHORT_UNIT if a.glu else after and inputs <= _SHORT)
    gated = [c for c in theirs if c.name == _GATED]
    rest = [plain, *(c for c in theirs if c.name != _GATED)]
    if ours and preferred and properties(a.x.device).exact == "sm_90":
        found = [*ours, *gated, *rest]
    else:
        found = [*gated, *rest, *ours]
    features = {
        "rows": rows,
        "outputs": a.weight.shape[0],
        "inputs": inputs,
        "glu": int(a.glu),
        "gate": int(a.gate is not None),
        "residual": int(a.residual is not None),
        "activation": _CODES[a.activation],
    }
    return Found(found, features, absent)


def _cublas(a: Any) -> list[Candidate]:
    """Its epilogues, which PyTorch's linear layer does not use."""
    if a.glu or a.gate is not None:
        return []
    if a.activation == "gelu_tanh" and a.bias is not None and a.residual is None:
        return [Candidate("cublas with gelu", _with_gelu)]
    if a.activation == "none" and a.bias is None and a.residual is not None:
        return [Candidate("cublas with residual", _with_residual)]
    return []


def _left_to_cublas(a: Any) -> str | None:
    """Why our product would be too slow to be tried, or None."""
    from fastdiff.kernels.linear import aligned

    if a.x.dtype == torch.float32:
        return "products of float32 are left to cuBLAS"
    return None if aligned(a.x, a.weight) else "rows of x or the weight do not start at multiples of 16 numbers"


def _triton(a: Any, few: bool) -> list[Candidate]:
    """Our product, by its own choice and with other tiles."""
    from fastdiff.kernels.linear import choice_of, tiles_of

    own = Candidate(_OURS, lambda a: _ours(a, None))
    if few:
        return [own]
    call = (a.x, a.weight, a.glu, a.gate is not None or a.residual is not None)
    chosen = choice_of(*call)
    others = [tile for tile in tiles_of(*call) if tile != chosen]
    return [own, *(_with_tile(tile) for tile in others[:_TILES])]


def _with_tile(tile: Any) -> Candidate:
    return Candidate(f"{_OURS} {tile.said}", lambda a: _ours(a, tile))


def _ours(a: Any, tile: Any) -> Tensor:
    from fastdiff.kernels.linear import linear

    return linear(
        a.x, a.weight, a.bias, gate=a.gate, residual=a.residual, activation=a.activation, glu=a.glu, tile=tile
    )


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
