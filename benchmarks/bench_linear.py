"""linear in C++ against torch's, and against the speed of a matrix product.

    python benchmarks/bench_linear.py

On a machine without AMX torch computes both, and the ratio is 1.
"""

import pytest
import torch

from fastdiff.bench.compare import Case
from fastdiff.bench.heap import run_benchmark
from fastdiff.ops.linear import linear, reference

# (B, S, K, rows of the weight, what follows): of DiT-XL/2, with its gate and residual; of Stable Diffusion at 64 and 16
# pixels; of SDXL.
SHAPES = [
    (2, 256, 1152, 3456, ""),
    (2, 256, 1152, 4608, "gelu"),
    (2, 256, 4608, 1152, "gate, residual"),
    (2, 256, 1152, 1152, "gate, residual"),
    (2, 4096, 320, 320, "residual"),
    (2, 4096, 320, 2560, "geglu"),
    (2, 256, 1280, 1280, ""),
    (2, 1024, 1280, 10240, "geglu"),
    (2, 77, 768, 320, ""),
]


def make(shape, follows):
    batch, rows, inputs, outputs = shape
    options = {}
    if "gelu" in follows:
        options["activation"] = "gelu_tanh"
    if "geglu" in follows:
        options.update(activation="gelu", glu=True)
    if "gate" in follows:
        options["gate"] = torch.randn(batch, 1, outputs)
    if "residual" in follows:
        options["residual"] = torch.randn(batch, rows, outputs)
    return (torch.randn(batch, rows, inputs), torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs)), options


def case(shape, follows):
    batch, rows, inputs, outputs = shape
    return Case(
        shape,
        torch.float32,
        lambda: make(shape, follows),
        bytes=4 * (batch * rows * (inputs + (outputs // 2 if follows == "geglu" else outputs)) + inputs * outputs),
        flops=2 * batch * rows * inputs * outputs,
        detail=follows,
        reduction=inputs,
    )


CASES = [case(tuple(shape), follows) for *shape, follows in SHAPES]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_linear(measure, case):
    measure(case, linear, reference)


if __name__ == "__main__":
    raise SystemExit(run_benchmark(__file__))
