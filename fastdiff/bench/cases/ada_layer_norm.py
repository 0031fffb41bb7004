"""ada_layer_norm as DiT's block has it: scale and shift are views of one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fastdiff.bench.cases.case import DIT, DTYPES, GPU_DTYPES, Case, Inputs, Normal

# (B, S, C). Batch 2 is a guided sample.
SHAPES = {
    DIT: [(2, 256, 1152), (2, 1024, 1152)],
    "DiT-XL/2, four at 512 px": [(8, 1024, 1152)],
    "DiT-S/2, 256 px": [(2, 256, 384)],
    "Stable Diffusion 3, 1024 px": [(2, 4096, 1536)],
    "FLUX, 1024 px": [(1, 4608, 3072)],
    "a few tokens": [(2, 16, 64)],
}
BENCHMARKED = [shape for shapes in SHAPES.values() for shape in shapes if shape != (2, 1024, 1152)]
HALF = [(2, 256, 1152), (8, 1024, 1152), (2, 4096, 1536)]
AFFINE = ("weight", "bias")


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
    """x, with a mean and deviation, scale, shift, weight, bias. per_row: which of scale, shift differ between rows."""
    normal = Normal(dtype, device, seed)
    x = normal(*shape, mean=mean, std=std)
    weight, bias = normal(2, shape[2])
    given = dict(x=x, **modulation(normal, shape, ("scale", "shift"), per_row), weight=weight, bias=bias)
    return given | dict.fromkeys(left_out)


def modulation(
    normal: Normal, shape: tuple[int, int, int], names: Sequence[str], per_row: Sequence[str]
) -> dict[str, Tensor]:
    """(B, 1, C) or, for those in `per_row`, (B, S, C): views of the chunk(6) that a DiT's block makes of the time."""
    batch, rows, channels = shape
    table = normal(batch, rows if per_row else 1, 6 * channels)
    return {n: t if n in per_row else t[:, :1] for n, t in zip(names, table.chunk(6, dim=-1)[1:])}


def case(
    shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, backward: bool = False, per_row: Sequence[str] = ()
) -> Case:
    """Without weight and bias, as in DiT."""
    return Case(
        "ada_layer_norm", shape, dtype, partial(make, shape, dtype, left_out=AFFINE, per_row=per_row),
        bytes=(5 if backward else 2) * math.prod(shape) * dtype.itemsize, reduction=shape[2],
        detail=", ".join(f"{name} of rows" for name in per_row), backward=backward,
    )  # fmt: skip


def by_purpose(case: Callable[..., Case], one_per_row: str) -> dict[str, list[Case]]:
    """The cases of this operator or of the one with a residual, in one of which an argument differs between rows."""
    return {
        "benchmark": [
            *(case(shape) for shape in BENCHMARKED),
            *(case(shape, dtype) for dtype in (torch.bfloat16, torch.float16) for shape in HALF),
            *(case(shape, backward=True) for shape in BENCHMARKED),
            *(case(shape, torch.bfloat16, backward=True) for shape in HALF[:2]),
        ],
        "gpu": [case(shape, dtype) for dtype in GPU_DTYPES for shape in HALF[:2]],
        "gpu-small": [case((2, 3, 40), dtype) for dtype in GPU_DTYPES],
        "gpu-gradients": [
            case(shape, dtype, per_row=per_row)
            for dtype in GPU_DTYPES
            for shape, per_row in (((2, 70, 72), ()), ((2, 30, 72), (one_per_row,)))
        ],
        "sweep": [case(shape, torch.float16) for shape in BENCHMARKED if shape[1] > 16],
        "smallest": [case((1, 2, 8), dtype) for dtype in DTYPES],
    }


CASES = by_purpose(case, "scale")
