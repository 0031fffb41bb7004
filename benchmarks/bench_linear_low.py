"""linear with bfloat16 and 8-bit factors against PyTorch's products of the same types.

    python benchmarks/bench_linear_low.py

PyTorch's layers of bfloat16 get and give bfloat16, as in a model of that type; ours begin with float32, and to be
compared their result is made bfloat16 in the time that is taken, which in a model it is not. PyTorch's layers of 8 bits
are its dynamically quantised ones, with one scale for all of an input; both begin and end with float32.
"""

import pytest
import torch

from fastdiff.bench import cases
from fastdiff.bench.heap import run_benchmark
from fastdiff.ops import linear
from fastdiff.ops.linear import Arguments
from fastdiff.ops.linear_low import low_linear

CASES = [case for case in cases.of("linear", "benchmark") if case.dtype is torch.float32 and not case.backward]


def in_bfloat16():
    """PyTorch's layer, which converts what it gets once; of float64 inputs in float64, to check by."""
    kept = {}

    def theirs(**inputs):
        if inputs["x"].dtype is torch.float64:
            return linear.plain(**inputs)
        if not kept:
            kept.update({key: x.bfloat16() if isinstance(x, torch.Tensor) else x for key, x in inputs.items()})
        return linear.plain(**kept)

    return theirs


def in_int8():
    """The same in 8 bits: PyTorch's dynamically quantised layer with a scale for each output, then the epilogue."""
    kept = []

    def theirs(**inputs):
        a = Arguments(**inputs)
        if a.x.dtype is torch.float64:
            return linear.reference(a)
        if not kept:
            scales = (a.weight.abs().amax(1) / 127).double()
            whole = torch.quantize_per_channel(a.weight, scales, torch.zeros(len(scales)).long(), 0, torch.qint8)
            kept.append(torch.ops.quantized.linear_prepack(whole, a.bias))
        return linear.follow(torch.ops.quantized.linear_dynamic(a.x, kept[0]), a, inplace=True)

    return theirs


@pytest.mark.parametrize("case", CASES, ids=str)
def test_linear_bf16(measure, case):
    measure(case, lambda **inputs: low_linear(Arguments(**inputs), "bf16").bfloat16(), in_bfloat16())


@pytest.mark.filterwarnings("ignore:torch.quantize_per")  # PyTorch deprecates its own
@pytest.mark.parametrize("case", CASES, ids=str)
def test_linear_int8(measure, case):
    measure(case, lambda **inputs: low_linear(Arguments(**inputs), "int8"), in_int8())


if __name__ == "__main__":
    raise SystemExit(run_benchmark(__file__))
