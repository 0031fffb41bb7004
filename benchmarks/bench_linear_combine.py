"""linear_combine in C++ against the same sums in torch, and against the speed of a copy.

python benchmarks/bench_linear_combine.py
"""

import math

import pytest
import torch

from fastdiff.bench.compare import Case
from fastdiff.bench.heap import run_benchmark
from fastdiff.ops.linear_combine import linear_combine, reference

# (shape, outputs, inputs): DDIM, 2M and a guided fourth-order multistep of a latent, and pictures in pixel space.
TABLES = [
    ((1, 4, 64, 64), 1, 2),
    ((1, 4, 64, 64), 2, 3),
    ((8, 4, 128, 128), 2, 3),
    ((8, 4, 128, 128), 2, 6),
    ((4, 3, 512, 512), 2, 3),
]


def make(shape, dtype, outputs, inputs):
    coefficients = torch.randn(outputs, inputs, dtype=torch.float64).tolist()
    return (coefficients, list(torch.randn(inputs, *shape, dtype=dtype))), {}


def case(shape, outputs, inputs, dtype=torch.float32):
    return Case(
        shape,
        dtype,
        lambda: make(shape, dtype, outputs, inputs),
        bytes=(outputs + inputs) * math.prod(shape) * dtype.itemsize,
        detail=f"{inputs} to {outputs}",
        reduction=inputs,
    )


CASES = [case(*table) for table in TABLES] + [case(*TABLES[2], dtype=torch.float64)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_linear_combine(measure, case):
    measure(case, linear_combine, reference)


if __name__ == "__main__":
    raise SystemExit(run_benchmark(__file__))
