"""linear, with what follows the product: of DiT-XL/2 a gate and the residual, of Stable Diffusion's blocks a GEGLU."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from fastdiff.bench.cases.case import DTYPES, Case, Inputs, Normal

# (B, S, K, rows of the weight), and what follows. Batch 2 is a guided sample.
SHAPES = {
    "DiT-XL/2, 256 px": [
        ((2, 256, 1152, 3456), ""), ((2, 256, 1152, 4608), "gelu"), ((2, 256, 4608, 1152), "gate, residual"),
        ((2, 256, 1152, 1152), "gate, residual"),
    ],
    "Stable Diffusion 1.5, 512 px": [
        ((2, 4096, 320, 320), "residual"), ((2, 4096, 320, 2560), "geglu"), ((2, 256, 1280, 1280), ""),
        ((2, 77, 768, 320), ""),
    ],
    "SDXL, 1024 px": [((2, 1024, 1280, 10240), "geglu")],
}  # fmt: skip
_OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "gelu": dict(activation="gelu_tanh"),
    "geglu": dict(activation="gelu", glu=True),
    "residual": dict(residual=True),
    "gate, residual": dict(gate=True, residual=True),
}


def make(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float32,
    *,
    bias: bool = True,
    activation: str = "none",
    glu: bool = False,
    gate: bool = False,
    residual: bool = False,
    per_row: bool = False,
    std: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
) -> Inputs:
    """x, with this deviation, a weight as networks are initialized, and what else is wanted. gate: of each row or, as a
    view of chunk(6), of each sample."""
    batch, rows, inputs, outputs = shape
    normal = Normal(dtype, device, seed)
    made: Inputs = dict(x=normal(batch, rows, inputs, std=std), weight=normal(outputs, inputs, std=inputs**-0.5))
    made |= dict(bias=normal(outputs) if bias else None, activation=activation, glu=glu)
    outputs = outputs // 2 if glu else outputs
    if gate:
        made["gate"] = normal(batch, rows if per_row else 1, 6 * outputs).chunk(6, dim=-1)[2]
    if residual:
        made["residual"] = normal(batch, rows, outputs)
    return made


def case(shape: tuple[int, int, int, int], follows: str = "", dtype: torch.dtype = torch.float32) -> Case:
    """follows: the product, in words."""
    batch, rows, inputs, outputs = shape
    options = _OPTIONS[follows]
    results = batch * rows * (outputs // 2 if "glu" in options else outputs)
    return Case(
        "linear", shape, dtype, partial(make, shape, dtype, **options),
        bytes=dtype.itemsize * (batch * rows * inputs + results + inputs * outputs),
        flops=2 * batch * rows * inputs * outputs, detail=follows, reduction=inputs,
    )  # fmt: skip


# The modulations of all blocks of DiT-XL/2, of two samples.
_MODULATIONS = ((2, 1, 1152, 28 * 6912), "")
CASES = {
    "benchmark": [case(*each) for shapes in SHAPES.values() for each in shapes],
    "sweep": [case(*each, torch.float16) for shapes in (*SHAPES.values(), [_MODULATIONS]) for each in shapes],
    "smallest": [case((1, 2, 8, 8), dtype=dtype) for dtype in DTYPES],
}
