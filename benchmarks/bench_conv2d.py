"""conv2d in C++ against torch's, and against the speed of a matrix product.

    python benchmarks/bench_conv2d.py

torch runs in the layout that is faster for it, contiguous or channels-last, which is timed before; ours is
channels-last. GFLOP/s are those of the convolution as it is defined: above the limit where fewer multiplications are
made.
"""

import time

import pytest
import torch
import torch.nn.functional as F

from fastdiff.bench.compare import Case
from fastdiff.bench.heap import run_benchmark
from fastdiff.ops.conv2d import conv2d, reference
from fastdiff.ops.group_norm_silu import group_norm_silu

# (N, C, H, W), K: Stable Diffusion's U-Net, a guided sample; its VAE's decoder; small models.
SAME = [
    ((2, 320, 64, 64), 320),
    ((2, 640, 32, 32), 640),
    ((2, 1280, 16, 16), 1280),
    ((2, 1280, 8, 8), 1280),
    ((1, 512, 64, 64), 512),
    ((1, 128, 512, 512), 128),
    ((8, 256, 16, 16), 256),
    ((8, 128, 32, 32), 128),
]
# What else is there: other numbers of channels, odd sizes, one sample and many.
OTHERS = [
    ((2, 320, 32, 32), 640),
    ((2, 1920, 16, 16), 1280),
    ((1, 512, 128, 128), 256),
    ((2, 4, 64, 64), 320),
    ((2, 320, 64, 64), 4),
    ((1, 320, 96, 56), 320),
    ((1, 320, 33, 47), 320),
    ((1, 320, 64, 64), 320),
    ((16, 64, 32, 32), 64),
    ((1, 64, 16, 16), 64),
]
# 1x1, around the attention of the same U-Net and beside its residual blocks; the last goes to torch.
POINTWISE = [((2, 320, 64, 64), 320), ((2, 1280, 16, 16), 1280), ((2, 960, 32, 32), 640), ((8, 128, 16, 16), 256)]


def make(shape, out_channels, residual=False, upsample=1, kernel=3):
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(out_channels, shape[1], kernel, kernel) / (kernel**2 * shape[1]) ** 0.5
    options = {"upsample": upsample} if kernel == 3 else {"padding": 0}
    if residual:
        options["residual"] = torch.randn_like(x)
    return (x, weight, torch.randn(out_channels)), options


def case(shape, out_channels, detail="", **options):
    batch, channels, height, width = shape
    pixels, taps = batch * height * width * options.get("upsample", 1) ** 2, options.get("kernel", 3) ** 2
    return Case(
        shape,
        torch.float32,
        lambda: make(shape, out_channels, **options),
        bytes=4 * (batch * channels * height * width + pixels * out_channels + taps * channels * out_channels),
        flops=2 * taps * pixels * channels * out_channels,
        detail=" ".join(word for word in (f"to {out_channels}" if out_channels != channels else "", detail) if word),
        reduction=taps * channels,
    )


def in_the_better_layout(function, case):
    """`function` with its images and weights in the layout that is faster for it, which is found now."""
    arguments, options = case.make()
    seconds = {}
    for layout in (torch.channels_last, torch.contiguous_format):
        converted = [t.contiguous(memory_format=layout) if t.ndim == 4 else t for t in arguments]
        rest = {
            name: t.contiguous(memory_format=layout) if isinstance(t, torch.Tensor) else t
            for name, t in options.items()
        }
        seconds[layout] = []
        for _ in range(4):
            started = time.perf_counter()
            function(*converted, **rest)
            seconds[layout].append(time.perf_counter() - started)
    best = min(seconds, key=lambda layout: min(seconds[layout][1:]))
    kept = {}

    def better(*arguments, **options):
        """Of each tensor, a copy in the other layout is made once."""

        def convert(value):
            if not isinstance(value, torch.Tensor) or value.ndim != 4 or value.dtype is not torch.float32:
                return value
            if id(value) not in kept:
                kept[id(value)] = (value, value.contiguous(memory_format=best))
            return kept[id(value)][1]

        return function(*map(convert, arguments), **{name: convert(value) for name, value in options.items()})

    return better


def theirs(x, weight, bias, *, residual=None, upsample=1, padding=1):
    return reference(x, None, weight, bias, padding=padding, residual=residual, upsample=upsample)


def block(x, weight, bias, *, residual, upsample=1, group_norm=group_norm_silu, convolution=conv2d):
    """Half of a residual block."""
    ones = torch.ones(x.shape[1], dtype=x.dtype)
    return convolution(group_norm(x, 32, ones, ones), weight, bias, residual=residual)


def their_block(x, weight, bias, *, residual, upsample=1):
    return block(x, weight, bias, residual=residual, group_norm=lambda *t: F.silu(F.group_norm(*t)), convolution=theirs)


@pytest.mark.parametrize("case", [case(*sizes) for sizes in SAME + OTHERS], ids=str)
def test_conv2d(measure, case):
    with torch.no_grad():
        measure(case, conv2d, in_the_better_layout(theirs, case))


@pytest.mark.parametrize("case", [case((2, 320, 64, 64), 320, "norm, silu, residual", residual=True)], ids=str)
def test_residual_block(measure, case):
    with torch.no_grad():
        measure(case, block, in_the_better_layout(their_block, case))


@pytest.mark.parametrize("case", [case((1, 512, 64, 64), 512, "upsampled", upsample=2)], ids=str)
def test_upsample(measure, case):
    with torch.no_grad():
        measure(case, conv2d, in_the_better_layout(theirs, case))


@pytest.mark.parametrize("case", [case(*sizes, "1x1", kernel=1) for sizes in POINTWISE], ids=str)
def test_pointwise(measure, case):
    with torch.no_grad():
        measure(case, conv2d, in_the_better_layout(theirs, case))


if __name__ == "__main__":
    raise SystemExit(run_benchmark(__file__))
