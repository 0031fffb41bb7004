"""conv2d with 3x3 and 1x1 kernels; x is channels-last and the weight as networks are initialized."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from fastdiff.bench.cases.case import DTYPES, Case, Inputs, Normal

# (N, C, H, W), K. Batch 2 is a guided sample.
SHAPES = {
    "Stable Diffusion 1.5, 512 px": [
        ((2, 320, 64, 64), 320), ((2, 640, 32, 32), 640), ((2, 1280, 16, 16), 1280), ((2, 1280, 8, 8), 1280),
        ((2, 320, 32, 32), 640), ((2, 1920, 16, 16), 1280), ((2, 4, 64, 64), 320), ((2, 320, 64, 64), 4),
    ],
    "its VAE's decoder": [((1, 512, 64, 64), 512), ((1, 128, 512, 512), 128), ((1, 512, 128, 128), 256)],
    "small models": [((8, 256, 16, 16), 256), ((8, 128, 32, 32), 128), ((16, 64, 32, 32), 64), ((1, 64, 16, 16), 64)],
    "other sizes": [((1, 320, 96, 56), 320), ((1, 320, 33, 47), 320), ((1, 320, 64, 64), 320)],
}  # fmt: skip
# 1x1, around the attention of the same U-Net and beside its residual blocks; the last goes to torch.
POINTWISE = [((2, 320, 64, 64), 320), ((2, 1280, 16, 16), 1280), ((2, 960, 32, 32), 640), ((8, 128, 16, 16), 256)]

# On a GPU: 3x3 with all that follows it in a residual block; before upsampling.
SWEPT = [
    (2, 320, 64, 64),
    (2, 640, 32, 32),
    (2, 1280, 16, 16),
    (2, 1280, 8, 8),
    (1, 512, 64, 64),
    (1, 256, 256, 256),
    (1, 128, 512, 512),
]
UPSAMPLED = [(2, 640, 32, 32), (2, 1280, 16, 16), (1, 512, 64, 64), (1, 256, 256, 256)]


def make(
    shape: tuple[int, int, int, int],
    out_channels: int,
    dtype: torch.dtype = torch.float32,
    *,
    kernel: int = 3,
    upsample: int = 1,
    residual: bool = False,
    like: str = "random",
    transposed: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> Inputs:
    """x, weight, bias, and what else is wanted. like: x is "random", "smooth", "silu", an activation's result, or has
    "outliers" in some channels. transposed: the weight is channels-last, as cuDNN wants it."""
    normal = Normal(dtype, device, seed)
    x = normal(*shape)
    if like == "smooth":
        x = x.cumsum(2).cumsum(3) / 8
    elif like == "silu":
        x = F.silu(2 * x)
    elif like == "outliers":
        x[:, ::7] *= 30
    x = x.contiguous(memory_format=torch.channels_last)
    weight = normal(out_channels, shape[1], kernel, kernel, std=(kernel**2 * shape[1]) ** -0.5)
    weight = weight.contiguous(memory_format=torch.channels_last) if transposed else weight
    made: Inputs = dict(x=x, weight=weight, bias=normal(out_channels), padding=kernel // 2, upsample=upsample)
    if residual:
        pixels = (upsample * size for size in shape[2:])
        made["residual"] = normal(shape[0], out_channels, *pixels).contiguous(memory_format=torch.channels_last)
    return made


def case(
    shape: tuple[int, int, int, int],
    out_channels: int,
    detail: str = "",
    dtype: torch.dtype = torch.float32,
    *,
    kernel: int = 3,
    upsample: int = 1,
    residual: bool = False,
    transposed: bool = False,
) -> Case:
    """flops are those of the convolution as it is defined."""
    batch, channels, height, width = shape
    pixels, taps = batch * height * width * upsample**2, kernel**2
    numbers = batch * channels * height * width + pixels * out_channels + taps * channels * out_channels
    words = (f"to {out_channels}" if out_channels != channels else "", detail)
    return Case(
        "conv2d", shape, dtype,
        partial(
            make, shape, out_channels, dtype, kernel=kernel, upsample=upsample, residual=residual,
            transposed=transposed,
        ),
        bytes=numbers * dtype.itemsize, flops=2 * taps * pixels * channels * out_channels,
        detail=" ".join(word for word in words if word), reduction=taps * channels,
    )  # fmt: skip


CASES = {
    "benchmark": [case(*sizes) for shapes in SHAPES.values() for sizes in shapes],
    "residual block": [case((2, 320, 64, 64), 320, "norm, silu, residual", residual=True)],
    "upsample": [case((1, 512, 64, 64), 512, "upsampled", upsample=2)],
    "pointwise": [case(*sizes, "1x1", kernel=1) for sizes in POINTWISE],
    "sweep": [
        *(case(shape, shape[1], "residual", torch.float16, residual=True, transposed=True) for shape in SWEPT),
        *(case(shape, shape[1], "upsampled", torch.float16, upsample=2, transposed=True) for shape in UPSAMPLED),
    ],
    "smallest": [case((1, 64, 4, 4), 64, dtype=dtype) for dtype in DTYPES],
}
