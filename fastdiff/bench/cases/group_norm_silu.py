"""group_norm_silu in U-Nets and VAEs; ADM's is adaptive, with scale and shift."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch

from fastdiff.bench.cases.case import DTYPES, GPU_DTYPES, SDXL, STABLE_DIFFUSION, Case, Inputs, Normal

GROUPS = 32
# (N, C, H, W). Batch 2 is a guided sample: each level of the U-Net, and what the skips make of them; then the VAE.
SHAPES = {
    STABLE_DIFFUSION: [
        (2, 320, 64, 64), (2, 960, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16), (2, 2560, 8, 8),
        (1, 512, 128, 128), (1, 128, 512, 512),
    ],
    SDXL: [(2, 320, 128, 128), (2, 640, 64, 64), (2, 1280, 32, 32), (1, 128, 1024, 1024)],
    "the VAE of Stable Diffusion, other levels": [(1, 512, 64, 64), (1, 512, 256, 256)],
    "ADM, 256 px": [(2, 512, 32, 32), (2, 1024, 8, 8)],
    "a small U-Net": [(8, 64, 16, 16)],
}  # fmt: skip
*UNET, _VAE_128, _VAE_512 = SHAPES[STABLE_DIFFUSION]
_VAE_64, _VAE_256 = SHAPES["the VAE of Stable Diffusion, other levels"]
_ADM, (_SMALL,) = SHAPES["ADM, 256 px"], SHAPES["a small U-Net"]
ADAPTIVE = ("scale", "shift")
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def make(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    groups: int = GROUPS,
    channels_last: bool = False,
    left_out: Sequence[str] = (),
    mean: float = 0.0,
    std: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
) -> Inputs:
    """x, with this mean and deviation, num_groups, weight, bias, and scale and shift, views of one tensor."""
    normal = Normal(dtype, device, seed)
    x = normal(*shape, mean=mean, std=std)
    x = x.contiguous(memory_format=LAST[x.ndim]) if channels_last else x
    weight, bias = normal(2, shape[1])
    scale, shift = normal(shape[0], 2 * shape[1]).chunk(2, dim=1)
    given = dict(x=x, num_groups=groups, weight=weight, bias=bias, scale=scale, shift=shift)
    return given | dict.fromkeys(left_out)


def case(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    channels_last: bool = False,
    adaptive: bool = False,
    backward: bool = False,
    groups: int = GROUPS,
) -> Case:
    """With weight and bias; adaptive: and with scale and shift."""
    given = partial(
        make, shape, dtype, groups=groups, channels_last=channels_last, left_out=() if adaptive else ADAPTIVE
    )
    return Case(
        "group_norm_silu", shape, dtype, given, bytes=(5 if backward else 2) * math.prod(shape) * dtype.itemsize,
        detail=", ".join(["channels last"] * channels_last + ["scale, shift"] * adaptive),
        reduction=math.prod(shape[1:]) // groups, backward=backward,
    )  # fmt: skip


_BOTH = (False, True)
_MORE = [(2, 1920, 32, 32), (2, 1280, 8, 8), (2, 320, 128, 128), (1, 256, 256, 256)]  # of U-Nets and the VAE
CASES = {
    "benchmark": [
        *(case(shape, channels_last=last) for shape in UNET for last in _BOTH),
        *(case(shape) for shape in (_VAE_64, _VAE_256, _VAE_512, _SMALL)),
        case(_VAE_512, channels_last=True),
        *(case(shape, adaptive=True) for shape in _ADM),
        *(
            case(shape, half, channels_last=last)
            for half in (torch.bfloat16, torch.float16)
            for shape, last in ((UNET[0], False), (UNET[0], True), (UNET[3], False), (_VAE_512, False))
        ),
        *(case(shape, channels_last=last, backward=True) for shape in UNET for last in _BOTH),
        *(case(shape, backward=True) for shape in (_VAE_64, _VAE_512, _SMALL)),
        case(_ADM[0], adaptive=True, backward=True),
        case(UNET[0], torch.bfloat16, backward=True),
    ],
    "gpu": [
        case(shape, dtype, channels_last=last)
        for dtype in GPU_DTYPES
        for shape in (UNET[0], UNET[2], UNET[3], _VAE_128, _VAE_512)
        for last in _BOTH
    ],
    "gpu-small": [case((2, 8, 5, 7), dtype, channels_last=last, groups=4) for dtype in GPU_DTYPES for last in _BOTH],
    "gpu-gradients": [
        case(shape, dtype, groups=groups)
        for dtype in GPU_DTYPES
        for shape, groups in (((2, 8, 9, 7), 4), ((1, 8, 301, 99), 2))
    ],
    "sweep": [
        *(
            case(shape, torch.float16, channels_last=last)
            for shape in (*UNET, *_MORE, _VAE_128, _VAE_512)
            for last in _BOTH
        ),
        *(case(shape, torch.float16, adaptive=True) for shape in _ADM),
    ],
    "smallest": [case((1, 2, 2, 2), dtype, groups=1) for dtype in DTYPES],
}
