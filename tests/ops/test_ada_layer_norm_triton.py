"""The Triton kernel of ada_layer_norm: numbers in the interpreter, compilation ahead of time. No GPU is needed."""

import pytest
from triton_process import TARGETS, compile_for, interpret

NUMBERS = """
import itertools, torch
from fastdiff.kernels.ada_layer_norm import ada_layer_norm
from fastdiff.ops.ada_layer_norm import reference
torch.manual_seed(0)
shapes, dtypes = [(2, 3, 7), (1, 2, 64), (2, 4, 1152), (0, 2, 8)], [torch.float32, torch.float16]
for shape, dtype, present in itertools.product(shapes, dtypes, itertools.product([False, True], repeat=3)):
    affine, gated, added = present
    b, s, c = shape
    scale, shift, gate = torch.randn(b, 1, 6 * c).to(dtype).chunk(6, dim=-1)[2:5]
    x = (50 + torch.randn(shape)).to(dtype)
    options = {"weight": torch.randn(c).to(dtype), "bias": torch.randn(c).to(dtype)} if affine else {}
    options |= {"gate": gate} if gated else {}
    options |= {"residual": torch.randn(b, s, 2 * c).to(dtype)[..., ::2].contiguous()} if added else {}
    ours, theirs = ada_layer_norm(x, scale, shift, **options), reference(x, scale, shift, **options)
    exact = reference(x.double(), scale.double(), shift.double(), **{k: v.double() for k, v in options.items()})
    assert ours.dtype == dtype and ours.shape == exact.shape
    if exact.numel():
        error, allowed = (float((y.double() - exact).abs().max()) for y in (ours, theirs))
        floor = float(exact.abs().max()) * (torch.finfo(dtype).eps + 4 * torch.finfo(torch.float32).eps)
        assert error <= 2 * allowed + floor, (shape, dtype, present, error, allowed)
print("ok")
"""


def test_numbers_in_the_interpreter():
    interpret(NUMBERS)


COMPILE = """
from fastdiff.kernels.ada_layer_norm import ada_layer_norm_kernel as kernel
flags = {"affine": False, "biased": False, "gated": True, "added": True, "block": 2048}
for dtype in ("fp32", "fp16", "bf16"):
    kinds = {name: "i64" for name in kernel.arg_names} | {name: "constexpr" for name in flags} | {"eps": "fp32"}
    tensors = ("x", "scale", "shift", "gate", "residual", "weight", "bias", "out")
    signature = kinds | {name: "*" + dtype for name in tensors}
    compile_ahead(kernel, signature, flags)
print("ok")
"""


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_ahead_of_time(target, tmp_path):
    compile_for(target, COMPILE, str(tmp_path))
