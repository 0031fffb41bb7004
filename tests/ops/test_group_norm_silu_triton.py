"""The Triton kernel of group_norm_silu: numbers in the interpreter, compilation ahead of time. No GPU is needed."""

import pytest
from triton_process import TARGETS, compile_for, interpret

NUMBERS = """
import itertools, torch
from fastdiff.kernels.group_norm_silu import group_norm_silu
from fastdiff.ops.group_norm_silu import reference
torch.manual_seed(0)
cases = [((2, 6, 5, 7), 3), ((1, 4, 40, 33), 2), ((1, 8), 4), ((0, 4, 2, 2), 2)]
for (shape, groups), dtype, last in itertools.product(cases, [torch.float32, torch.float16], [False, True]):
    for present in [(False,) * 5, (True,) * 5, (True, False, False, True, True)]:
        x = (20 + torch.randn(shape)).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last) if last and x.ndim == 4 else x
        tensors = [*torch.randn(2, shape[1]).to(dtype), *torch.randn(2, *shape[:2]).to(dtype)]
        weight, bias, scale, shift = (t if there else None for t, there in zip(tensors, present))
        activation = "silu" if present[4] else "none"
        arguments = (x, groups, weight, bias, 1e-5, scale, shift, activation)
        ours = group_norm_silu(x, groups, weight, bias, scale=scale, shift=shift, activation=activation)
        theirs = reference(*arguments)
        exact = reference(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
        assert ours.dtype == dtype and ours.stride() == theirs.stride()
        if exact.numel():
            error, allowed = (float((y.double() - exact).abs().max()) for y in (ours, theirs))
            eps = torch.finfo(torch.float32).eps
            floor = float(exact.abs().max()) * (torch.finfo(dtype).eps + 8 * eps)
            # The mean is a float32 as well; of a group of two numbers that are close, much is made of its rounding.
            gain = 1 / (x.double().reshape(shape[0], groups, -1).var(2, correction=0) + 1e-5).sqrt().min()
            gain *= (1 if weight is None else weight.abs().max()) * (1 if scale is None else (1 + scale).abs().max())
            floor += eps * float(x.abs().max() * gain)
            assert error <= 2 * allowed + floor, (shape, groups, dtype, last, present, error, allowed)
print("ok")
"""


def test_numbers_in_the_interpreter():
    interpret(NUMBERS)


COMPILE = """
from fastdiff.kernels.group_norm_silu import group_norm_silu_kernel as kernel
flags = {"affine": True, "biased": True, "scaled": False, "shifted": False, "silu": True, "block": 2048}
for dtype, last in (("fp32", False), ("fp16", True), ("bf16", False)):
    constants = flags | {"channels_last": last}
    kinds = {name: "i32" for name in kernel.arg_names} | {name: "constexpr" for name in constants} | {"eps": "fp32"}
    signature = kinds | {name: "*" + dtype for name in ("x", "weight", "bias", "scale", "shift", "out")}
    compile_ahead(kernel, signature, constants)
print("ok")
"""


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_ahead_of_time(target, tmp_path):
    compile_for(target, COMPILE, str(tmp_path))
