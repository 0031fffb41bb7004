"""add_group_norm_silu in U-Nets and VAEs: a convolution's bias with the embedding of the time, or with the residual."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch

from fastdiff.bench.cases.case import DTYPES, GPU_DTYPES, SDXL, STABLE_DIFFUSION, Case, Inputs, Normal

GROUPS = 32
# (N, C, H, W): results of convolutions, of which the U-Net's skips are no part.
SHAPES = {
    STABLE_DIFFUSION: [(2, 320, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16), (2, 1280, 8, 8), (1, 128, 512, 512)],
    SDXL: [(2, 320, 128, 128), (2, 640, 64, 64), (2, 1280, 32, 32)],
}
BEFORE = ("conv_bias", "channel_bias", "residual")
ADAPTIVE = ("scale", "shift")
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


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
    normal = Normal(dtype, device, seed)
    x, residual = normal(*shape, std=std), normal(*shape, mean=mean, std=std)
    if channels_last and x.ndim in _LAST:
        x, residual = (t.contiguous(memory_format=_LAST[t.ndim]) for t in (x, residual))
    conv_bias, weight, bias = normal(3, shape[1])
    channel_bias, scale, shift = normal(shape[0], 3 * shape[1]).chunk(3, dim=1)
    given = dict(
        x=x, num_groups=groups, conv_bias=conv_bias, channel_bias=channel_bias, residual=residual, weight=weight,
        bias=bias, scale=scale, shift=shift,
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
    "smallest": [case((1, 2, 2, 2), dtype, residual=True, groups=1) for dtype in DTYPES],
}
