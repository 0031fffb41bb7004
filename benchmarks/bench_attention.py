"""attention in C++ against torch's scaled_dot_product_attention, and against the speed of a matrix product.

    python benchmarks/bench_attention.py

q, k and v are (B, H, S, D), contiguous, the layout that torch is fastest with.
"""

import pytest
import torch

from fastdiff.bench.compare import Case
from fastdiff.bench.heap import run_benchmark
from fastdiff.ops.attention import attention, reference

# (B, H, S, D) and the number of keys: Stable Diffusion's levels, guided, with themselves and with the text; DiT-XL/2 at
# 256 and 512 pixels; ADM; a VAE's middle; SDXL's with the text; the last level of a small U-Net.
SHAPES = [
    ((2, 8, 4096, 40), 4096),
    ((2, 8, 1024, 80), 1024),
    ((2, 8, 256, 160), 256),
    ((2, 8, 64, 160), 64),
    ((2, 16, 256, 72), 256),
    ((2, 16, 1024, 72), 1024),
    ((1, 8, 1024, 64), 1024),
    ((1, 1, 1024, 512), 1024),
    ((2, 8, 4096, 40), 77),
    ((2, 8, 1024, 80), 77),
    ((2, 8, 256, 160), 77),
    ((2, 20, 1024, 64), 77),
    ((4, 4, 64, 32), 64),
]
HALF = [SHAPES[i] for i in (1, 2, 4, 8, 9)]


def make(shape, keys, dtype, backward):
    batch, heads, _, channels = shape
    q, k, v = (torch.randn(batch, heads, n, channels).to(dtype) for n in (shape[2], keys, keys))
    return tuple(t.requires_grad_(backward) for t in (q, k, v)), {}


def case(shape, keys, dtype, backward=False):
    batch, heads, queries, channels = shape
    products = batch * heads * queries * keys * channels
    return Case(
        shape,
        dtype,
        lambda: make(shape, keys, dtype, backward),
        bytes=2 * batch * heads * (queries + keys) * channels * dtype.itemsize,
        flops=(14 if backward else 4) * products,
        detail=f"{keys} keys",
        reduction=keys,
        backward=backward,
    )


CASES = [case(*shape, torch.float32) for shape in SHAPES]
CASES += [case(*shape, dtype) for dtype in (torch.bfloat16, torch.float16) for shape in HALF]
CASES += [case(*shape, torch.float32, backward=True) for shape in (SHAPES[1], SHAPES[4], SHAPES[9])]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(measure, case):
    measure(case, attention, reference)


if __name__ == "__main__":
    raise SystemExit(run_benchmark(__file__))
