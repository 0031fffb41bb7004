"""linear_combine as solvers need it: of a latent or a picture, the last outputs of the model and noise."""

from __future__ import annotations

import math
from functools import partial

import torch

from fastdiff.bench.cases.case import DIT, DTYPES, GPU_DTYPES, SDXL, STABLE_DIFFUSION, Case, Inputs, Normal

SHAPES = {
    STABLE_DIFFUSION: [(1, 4, 64, 64)],
    SDXL: [(1, 4, 128, 128)],
    DIT: [(1, 4, 32, 32), (1, 4, 64, 64)],
    "Stable Diffusion 1.5, two pictures": [(2, 4, 64, 64)],
    "SDXL, eight pictures": [(8, 4, 128, 128)],
    "pixels, 512 px, four pictures": [(4, 3, 512, 512)],
}
((_LATENT,), _, _, (_TWO,), (_LATENTS,), (_PIXELS,)) = SHAPES.values()


def make(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    outputs: int = 2,
    inputs: int = 3,
    mean: float = 0.0,
    std: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
) -> Inputs:
    """A table of coefficients, and inputs with this mean and deviation."""
    normal = Normal(dtype, device, seed)
    coefficients = Normal(torch.float64, seed=seed)(outputs, inputs).tolist()
    return {"coefficients": coefficients, "inputs": [normal(*shape, mean=mean, std=std) for _ in range(inputs)]}


def case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, outputs: int = 2, inputs: int = 3) -> Case:
    """`inputs` to `outputs`: 2 to 1 is DDIM, 3 to 2 DPM-Solver++(2M), 6 to 2 a guided multistep of fourth order."""
    return Case(
        "linear_combine", shape, dtype, partial(make, shape, dtype, outputs=outputs, inputs=inputs),
        bytes=(outputs + inputs) * math.prod(shape) * dtype.itemsize, detail=f"{inputs} to {outputs}", reduction=inputs,
    )  # fmt: skip


CASES = {
    "benchmark": [
        case(_LATENT, outputs=1, inputs=2), case(_LATENT), case(_LATENTS), case(_LATENTS, inputs=6), case(_PIXELS),
        case(_LATENTS, torch.float64),
    ],
    "gpu": [case(shape, dtype) for dtype in GPU_DTYPES for shape in (_TWO, _LATENTS, _PIXELS)],
    "gpu-small": [case((33,), dtype) for dtype in GPU_DTYPES],
    "gpu-gradients": [case((3, 1000), dtype, outputs=1, inputs=2) for dtype in GPU_DTYPES],
    "smallest": [case((2,), dtype, outputs=1, inputs=1) for dtype in DTYPES],
}  # fmt: skip
