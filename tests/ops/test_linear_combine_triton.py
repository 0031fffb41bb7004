"""The Triton kernel of linear_combine: numbers in the interpreter, compilation ahead of time. No GPU is needed."""

import importlib.util
import os
import subprocess
import sys

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed (it has no wheel for this platform)", allow_module_level=True)

# Triton decides at import whether it interprets, so this runs in a process of its own.
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
    result = subprocess.run([sys.executable, "-c", NUMBERS], capture_output=True, text=True, check=False,
                            env=os.environ | {"TRITON_INTERPRET": "1"})  # fmt: skip
    assert result.stdout.strip() == "ok", result.stderr


COMPILE = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton.language as tl
from fastdiff.kernels.linear_combine import linear_combine_kernel as kernel
target = {"sm_80": GPUTarget("cuda", 80, 32), "sm_90": GPUTarget("cuda", 90, 32), "sm_100": GPUTarget("cuda", 100, 32),
          "gfx942": GPUTarget("hip", "gfx942", 64)}[sys.argv[1]]
for dtype in (tl.float32, tl.float16, tl.bfloat16):
    signature = {"inputs": "*i64", "outputs": "*i64", "coefficients": "*fp32", "size": "i64", "num_inputs": "i32",
                 "num_outputs": "constexpr", "padded_outputs": "constexpr", "dtype": "constexpr", "block": "constexpr"}
    constants = {"num_outputs": 2, "padded_outputs": 2, "dtype": dtype, "block": 1024}
    compiled = triton.compile(ASTSource(fn=kernel, signature=signature, constexprs=constants), target=target)
    assert any(kind in compiled.asm for kind in ("cubin", "hsaco")), list(compiled.asm)
print("ok")
"""


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_compiles_ahead_of_time(target, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE, target], capture_output=True, text=True, check=False, env=environment
    )
    assert result.stdout.strip() == "ok", result.stderr
