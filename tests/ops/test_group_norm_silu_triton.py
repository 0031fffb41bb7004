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


GRADIENTS = """
import itertools, torch
from fastdiff.kernels.group_norm_silu import group_norm_silu_backward
from fastdiff.ops.group_norm_silu import reference
torch.manual_seed(0)
torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN

def gradients(x, groups, options, activation, grad):
    leaves = {"x": x} | options
    leaves = {name: t.detach().clone().requires_grad_() for name, t in leaves.items()}
    out = reference(num_groups=groups, activation=activation, **leaves)
    return dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad)))

cases = [((2, 6, 5, 7), 3), ((1, 4, 50, 45), 2), ((1, 8, 3), 4), ((2, 300, 3, 3), 2), ((0, 4, 2, 2), 2)]
for (shape, groups), dtype, last in itertools.product(cases, [torch.float32, torch.float16], [False, True]):
    if last and len(shape) != 4:
        continue
    for present in ("", "weight bias scale shift", "weight shift", "bias scale"):
        if "bias" in present and "weight" not in present:
            present = "scale"
        layout = torch.channels_last if last else torch.contiguous_format
        x, grad = ((mean + torch.randn(shape)).to(dtype).contiguous(memory_format=layout) for mean in (20, 0))
        sizes = {"weight": shape[1:2], "bias": shape[1:2], "scale": shape[:2], "shift": shape[:2]}
        options = {name: torch.randn(sizes[name]).to(dtype) for name in present.split()}
        activation = "none" if present == "weight shift" else "silu"
        ours = group_norm_silu_backward(grad, x, groups, activation=activation, **options)
        theirs = gradients(x, groups, options, activation, grad)
        doubles = {name: t.double() for name, t in options.items()}
        exact = gradients(x.double(), groups, doubles, activation, grad.double())
        # As for ada_layer_norm: eps times the largest factors, times what the rounding of the mean is made of.
        size, eps = 1.0, torch.finfo(torch.float32).eps
        if x.numel():
            grouped = x.double().reshape(shape[0], groups, -1)
            deviation = (grouped.var(2, correction=0) + 1e-5).sqrt().min()
            normal = ((grouped - grouped.mean(2, keepdim=True)).abs().max() / deviation).clamp_min(1)
            for t in (grad, *(1 + t.abs() for t in options.values())):
                size *= float(t.abs().max().double().clamp_min(1))
            size *= float((1 + x.abs().max() / deviation) * (1 / deviation).clamp_min(1) * normal**2)
        for name, want in exact.items():
            mine = ours[name]
            assert mine.dtype == dtype and mine.shape == want.shape, name
            if not want.numel():
                continue
            error, allowed = (float((t.double() - want).abs().max()) for t in (mine, theirs[name]))
            terms = 1 if name == "x" else x.numel() / want.numel()
            floor = float(want.abs().max()) * torch.finfo(dtype).eps + terms**0.5 * eps * size
            assert error <= 2 * allowed + floor, (shape, groups, dtype, last, present, name, error, allowed, floor)
print("ok")
"""


def test_gradients_in_the_interpreter():
    interpret(GRADIENTS)


COMPILE = """
from fastdiff.kernels import group_norm_silu as op
from fastdiff.kernels.ahead_of_time import Variant, compile_variant, usage
flags = {"affine": True, "biased": True, "scaled": False, "shifted": False, "silu": True}
kernels = {
    op.group_norm_silu_kernel: ((False, "fp32", 4), (True, "fp16", 4), (False, "bf16", 4)),
    op.group_norm_silu_sums_kernel: ((False, "fp32", op.BACKWARD_WARPS), (True, "bf16", op.BACKWARD_WARPS)),
    op.group_norm_silu_dx_kernel: ((False, "fp32", op.BACKWARD_WARPS), (True, "bf16", op.BACKWARD_WARPS)),
}
for kernel, cases in kernels.items():
    for last, dtype, warps in cases:
        block_channels, block_pixels = op.backward_blocks(10, 4096, last)
        constants = flags | {"channels_last": last, "block": op.BLOCK}
        constants |= {"block_channels": block_channels, "block_pixels": block_pixels}
        constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
        types = {name: "i32" for name in kernel.arg_names} | {"eps": "fp32"}
        types |= {name: "*" + dtype for name in ("x", "weight", "bias", "scale", "shift", "out", "grad", "dx")}
        types |= {name: "*fp32" for name in ("statistics", "means", "sum_gradient", "sum_product")}
        # As at a launch: the contiguous stride is the constant 1, the others are multiples of 16.
        ones = ("channel_stride", "grad_channel") if last else ("pixel_stride", "grad_pixel")
        constants |= {name: 1 for name in ones if name in kernel.arg_names}
        names = ("channels", "pixels", "channel_stride", "pixel_stride", "grad_sample", "grad_channel", "grad_pixel")
        multiples = tuple(name for name in names if name in kernel.arg_names and name not in ones)
        options = {"num_warps": warps, "enable_fp_fusion": True}
        found = usage(compile_variant(Variant(kernel, types, constants, options, multiples), target))
        assert found.stack == 0, (kernel, last, dtype, found)
print("ok")
"""


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_ahead_of_time_without_spills(target, tmp_path):
    compile_for(target, f"target = {target!r}" + COMPILE, str(tmp_path))
