"""group_norm_silu in C++ against torch's group_norm and silu, and against the speed of a copy.

python benchmarks/bench_group_norm_silu.py
"""

import math

import pytest
import torch

from fastdiff.bench.compare import Case
from fastdiff.bench.heap import run_benchmark
from fastdiff.ops.group_norm_silu import group_norm_silu, reference

GROUPS = 32
# Stable Diffusion's U-Net, a guided sample: each level, and what the skips make of them.
UNET = [(2, 320, 64, 64), (2, 960, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16), (2, 2560, 8, 8)]
# The decoder of its VAE.
VAE = [(1, 512, 64, 64), (1, 512, 256, 256), (1, 128, 512, 512)]
# ADM at 256 pixels, with adaptive scale and shift; and a small model's.
ADM = [(2, 512, 32, 32), (2, 1024, 8, 8)]
SMALL = (8, 64, 16, 16)


def make(shape, dtype, channels_last, adaptive, backward):
    x, (weight, bias) = torch.randn(shape).to(dtype), torch.randn(2, shape[1]).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    scale, shift = torch.randn(shape[0], 2 * shape[1]).to(dtype).chunk(2, dim=1) if adaptive else (None, None)
    if backward:
        x, weight, bias = (t.requires_grad_() for t in (x, weight, bias))
        scale, shift = (t.requires_grad_() for t in (scale, shift)) if adaptive else (None, None)
    return (x, GROUPS, weight, bias), {"scale": scale, "shift": shift}


def case(shape, dtype=torch.float32, channels_last=False, adaptive=False, backward=False):
    details = ["channels last"] * channels_last + ["scale, shift"] * adaptive
    return Case(
        shape,
        dtype,
        lambda: make(shape, dtype, channels_last, adaptive, backward),
        bytes=(5 if backward else 2) * math.prod(shape) * dtype.itemsize,
        detail=", ".join(details),
        reduction=math.prod(shape[1:]) // GROUPS,
        backward=backward,
    )


CASES = [case(shape, channels_last=last) for shape in UNET for last in (False, True)]
CASES += [case(shape) for shape in VAE] + [case(VAE[-1], channels_last=True), case(SMALL)]
CASES += [case(shape, adaptive=True) for shape in ADM]
for half in (torch.bfloat16, torch.float16):
    CASES += [case(UNET[0], half), case(UNET[0], half, channels_last=True), case(UNET[3], half), case(VAE[-1], half)]
CASES += [case(shape, channels_last=last, backward=True) for shape in UNET for last in (False, True)]
CASES += [case(shape, backward=True) for shape in (VAE[0], VAE[-1], SMALL)]
CASES += [case(ADM[0], adaptive=True, backward=True), case(UNET[0], torch.bfloat16, backward=True)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_group_norm_silu(measure, case):
    measure(case, group_norm_silu, reference)


if __name__ == "__main__":
    raise SystemExit(run_benchmark(__file__))
