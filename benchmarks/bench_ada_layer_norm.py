"""ada_layer_norm in C++ against torch's layer_norm with its modulation, and against the speed of a copy.

    python benchmarks/bench_ada_layer_norm.py

As DiT's block has them: shift, scale and gate are views of one tensor.
"""

import pytest
import torch

from fastdiff.bench.compare import Case
from fastdiff.bench.heap import run_benchmark
from fastdiff.ops.ada_layer_norm import ada_layer_norm, reference

# DiT-XL/2 at 256 pixels, a guided sample; a batch of four at 512 pixels; DiT-S/2; SD3; FLUX's; a few tokens.
SHAPES = [(2, 256, 1152), (8, 1024, 1152), (2, 256, 384), (2, 4096, 1536), (1, 4608, 3072), (2, 16, 64)]
HALF = [(2, 256, 1152), (8, 1024, 1152), (2, 4096, 1536)]


def make(shape, dtype, gated, backward=False):
    batch, _, channels = shape
    shift, scale, gate = torch.randn(batch, 1, 6 * channels).to(dtype).chunk(6, dim=-1)[:3]
    x, residual = torch.randn(2, *shape).to(dtype)
    if backward:
        x, scale, shift, gate, residual = (t.requires_grad_() for t in (x, scale, shift, gate, residual))
    return (x, scale, shift), ({"gate": gate, "residual": residual} if gated else {})


def case(shape, dtype, gated, backward=False):
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    streams = (3 if gated else 2) + (3 if backward else 0)  # the residual's gradient is that of the result
    return Case(
        shape,
        dtype,
        lambda: make(shape, dtype, gated, backward),
        bytes=streams * size,
        detail="gate, residual" if gated else "",
        reduction=shape[2],
        backward=backward,
    )


CASES = [case(shape, torch.float32, gated) for shape in SHAPES for gated in (False, True)]
CASES += [case(shape, dtype, True) for dtype in (torch.bfloat16, torch.float16) for shape in HALF]
CASES += [case(shape, torch.float32, gated, backward=True) for shape in SHAPES for gated in (False, True)]
CASES += [case(shape, torch.bfloat16, True, backward=True) for shape in HALF[:2]]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ada_layer_norm(measure, case):
    measure(case, ada_layer_norm, reference)


if __name__ == "__main__":
    raise SystemExit(run_benchmark(__file__))
