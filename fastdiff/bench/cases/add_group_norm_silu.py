"""add_group_norm_silu in U-Nets and VAEs: a convolution's bias with the embedding of the time, or with the residual."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch

from fastdiff.bench.cases import group_norm_silu
from fastdiff.bench.cases.case import DTYPES, GPU_DTYPES, SDXL, STABLE_DIFFUSION, Case, Inputs, Normal
from fastdiff.bench.cases.group_norm_silu import ADAPTIVE, GROUPS, LAST

# (N, C, H, W): results of convolutions, of which the U-Net's skips are no part.
SHAPES = {
    STABLE_DIFFUSION: [(2, 320, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16), (2, 1280, 8, 8), (1, 128, 512, 512)],
    SDXL: [(2, 320, 128, 128), (2, 640, 64, 64), (2, 1280, 32, 32)],
}
BEFORE = ("conv_bias", "channel_bias", "residual")


def make(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    groups: int = GROUPS,
    channels_last: bool = True,
    left_out: Sequence[str] = (),
    mean: float = 0.0,
    std: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
) -> Inputs:
    """x, residual, which has this mean, both with this deviation, and all else."""
    of_norm = partial(
        group_norm_silu.make, shape, dtype, groups=groups, channels_last=channels_last and len(shape) in LAST, std=std,
        device=device,
    )  # fmt: skip
    normal = Normal(dtype, device, seed + 2)
    given = of_norm(seed=seed) | dict(
        conv_bias=normal(shape[1]), channel_bias=normal(shape[0], 2 * shape[1])[:, : shape[1]],
        residual=of_norm(mean=mean, seed=seed + 1)["x"],
    )  # fmt: skip
    return given | dict.fromkeys(left_out)


def case(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    residual: bool = False,
    channels_last: bool = True,
    backward: bool = False,
    groups: int = GROUPS,
) -> Case:
    """With conv_bias, weight and bias, and either a residual or a channel_bias. x and the residual are read, h and z
    are written; their gradients and h are read, those of x and of the residual written."""
    tensors = (6 if backward else 4) if residual else (4 if backward else 3)
    given = partial(
        make, shape, dtype, groups=groups, channels_last=channels_last,
        left_out=(*ADAPTIVE, "channel_bias" if residual else "residual"),
    )  # fmt: skip
    return Case(
        "add_group_norm_silu", shape, dtype, given, bytes=tensors * math.prod(shape) * dtype.itemsize,
        detail="residual" if residual else "embedding", reduction=math.prod(shape[1:]) // groups, backward=backward,
    )  # fmt: skip


_BOTH = (False, True)
CASES = {
    "benchmark": [case(shape, residual=there) for shape in SHAPES[STABLE_DIFFUSION][:4] for there in _BOTH],
    "gpu": [
        case(shape, dtype, residual=there)
        for dtype in GPU_DTYPES
        for shape in SHAPES[STABLE_DIFFUSION]
        for there in _BOTH
    ],
    "gpu-small": [case((2, 8, 5, 7), dtype, residual=there, groups=4) for dtype in GPU_DTYPES for there in _BOTH],
    "gpu-gradients": [
        case(shape, dtype, residual=there, groups=groups)
        for dtype in GPU_DTYPES
        for shape, groups in (((2, 8, 9, 7), 4), ((1, 8, 301, 99), 2))
        for there in _BOTH
    ],
    "sweep": [
        case(shape, torch.float16, residual=there)
        for shape in (*SHAPES[STABLE_DIFFUSION], (1, 512, 128, 128), (1, 256, 256, 256))
        for there in _BOTH
    ],
    "smallest": [case((1, 2, 2, 2), dtype, residual=True, groups=1) for dtype in DTYPES],
}
