"""residual_ada_layer_norm as DiT's block has it: gate, scale and shift are views of one tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch

from fastdiff.bench.cases.ada_layer_norm import AFFINE, SHAPES, by_purpose, modulation
from fastdiff.bench.cases.case import Case, Inputs, Normal

MODULATION = ("gate", "scale", "shift")


def make(
    shape: tuple[int, int, int],
    dtype: torch.dtype = torch.float32,
    *,
    left_out: Sequence[str] = (),
    per_row: Sequence[str] = (),
    mean: float = 0.0,
    std: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
) -> Inputs:
    """y, residual, which has this mean, gate, scale, shift, weight, bias. per_row: which differ between rows."""
    normal = Normal(dtype, device, seed)
    y, residual = normal(*shape, std=std), normal(*shape, mean=mean, std=std)
    weight, bias = normal(2, shape[2])
    given = dict(y=y, residual=residual, **modulation(normal, shape, MODULATION, per_row), weight=weight, bias=bias)
    return given | dict.fromkeys(left_out)


def case(
    shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, backward: bool = False, per_row: Sequence[str] = ()
) -> Case:
    """Without weight and bias, as in DiT. y and residual are read, h and z written; their gradients and h and y are
    read, the gradients of y and residual written."""
    return Case(
        "residual_ada_layer_norm", shape, dtype, partial(make, shape, dtype, left_out=AFFINE, per_row=per_row),
        bytes=(10 if backward else 4) * math.prod(shape) * dtype.itemsize, reduction=shape[2],
        detail=", ".join(f"{name} of rows" for name in per_row), backward=backward,
    )  # fmt: skip


CASES = by_purpose(case, "gate")

__all__ = ["CASES", "SHAPES", "case", "make"]
