"""The Triton kernel of linear_combine: numbers in the interpreter, compilation ahead of time. No GPU is needed."""

import pytest
from triton_process import TARGETS, compile_for, interpret

NUMBERS = """
import itertools, torch
from fastdiff.kernels.linear_combine import linear_combine
from fastdiff.ops.linear_combine import reference
torch.manual_seed(0)
tables, sizes, dtypes = [(1, 1), (2, 3), (5, 4), (8, 16)], [0, 1, 1000, 1024, 2049], [torch.float32, torch.float16]
for (m, k), size, dtype in itertools.product(tables, sizes, dtypes):
    c = torch.randn(m, k, dtype=torch.float64).tolist()
    xs = [torch.randn(size).to(dtype) for _ in range(k)]
    exact = reference(c, [x.double() for x in xs])
    sums = [sum(abs(a) * x.double().abs() for a, x in zip(row, xs)) for row in c]
    scale = float(torch.stack(sums).max()) if size else 0.0
    bound = scale * (k * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps)
    for ours, want in zip(linear_combine(c, xs), exact, strict=True):
        assert ours.dtype == dtype and ours.shape == want.shape
        error = float((ours.double() - want).abs().max()) if size else 0.0
        assert error <= bound, (m, k, size, dtype, error, bound)
view = torch.randn(6, 8).t()
assert torch.allclose(linear_combine([[2.0]], [view])[0], 2 * view)
print("ok")
"""


def test_numbers_in_the_interpreter():
    interpret(NUMBERS)


COMPILE = """
import triton.language as tl
from fastdiff.kernels.linear_combine import linear_combine_kernel as kernel
for dtype in (tl.float32, tl.float16, tl.bfloat16):
    signature = {"inputs": "*i64", "outputs": "*i64", "coefficients": "*fp32", "size": "i64", "num_inputs": "i32",
                 "num_outputs": "constexpr", "padded_outputs": "constexpr", "dtype": "constexpr", "block": "constexpr"}
    constants = {"num_outputs": 2, "padded_outputs": 2, "dtype": dtype, "block": 1024}
    compile_ahead(kernel, signature, constants)
print("ok")
"""


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_ahead_of_time(target, tmp_path):
    compile_for(target, COMPILE, str(tmp_path))
