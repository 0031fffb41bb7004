"""ada_layer_norm in C++ against torch's layer_norm with its modulation, and against the speed of a copy.

    python benchmarks/bench_ada_layer_norm.py

As DiT's block has them: shift and scale are views of one tensor.
"""

import pytest
import torch

from fastdiff.bench.compare import Case
from fastdiff.bench.heap import run_benchmark
from fastdiff.ops.ada_layer_norm import ada_layer_norm, reference

# DiT-XL/2 at 256 pixels, a guided sample; a batch of four at 512 pixels; DiT-S/2; SD3; FLUX's; a few tokens.
SHAPES = [(2, 256, 1152), (8, 1024, 1152), (2, 256, 384), (2, 4096, 1536), (1, 4608, 3072), (2, 16, 64)]
HALF = [(2, 256, 1152), (8, 1024, 1152), (2, 4096, 1536)]


def make(shape, dtype, backward=False):
    batch, _, channels = shape
    shift, scale = torch.randn(batch, 1, 6 * channels).to(dtype).chunk(6, dim=-1)[:2]
    x = torch.randn(shape).to(dtype)
    if backward:
        x, scale, shift = (t.requires_grad_() for t in (x, scale, shift))
    return (x, scale, shift), {}


def case(shape, dtype, backward=False):
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    streams = 5 if backward else 2
    return Case(
        shape, dtype, lambda: make(shape, dtype, backward), bytes=streams * size, reduction=shape[2], backward=backward
    )


CASES = [case(shape, torch.float32) for shape in SHAPES]
CASES += [case(shape, dtype) for dtype in (torch.bfloat16, torch.float16) for shape in HALF]
CASES += [case(shape, torch.float32, backward=True) for shape in SHAPES]
CASES += [case(shape, torch.bfloat16, backward=True) for shape in HALF[:2]]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ada_layer_norm(measure, case):
    measure(case, ada_layer_norm, reference)


if __name__ == "__main__":
    raise SystemExit(run_benchmark(__file__))
