"""The Triton kernel of group_norm_silu: numbers in the interpreter, compilation ahead of time. No GPU is needed."""

import pytest
from triton_process import TARGETS, compile_for, interpret

# Small groups cut as large ones are: the last part is shorter, and launches have two groups each.
PARTS = """
import itertools, torch
from fastdiff.kernels.group_norm_plan import Plan, plan
def parts(x, groups, last):
    pixels = x.shape[2] * x.shape[3]
    part_pixels = pixels // 3 + 1
    block_channels = 2 if x.shape[1] < 8 else 64
    return Plan(False, block_channels, 256, 4, part_pixels, -(-pixels // part_pixels), 2)
"""
NUMBERS = """
from fastdiff.kernels.group_norm_silu import group_norm_silu
from fastdiff.ops import group_norm_silu as op
reference = op.plain.positional
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
        cut = parts(x, groups, last) if len(shape) == 4 and present[0] else None
        ours = group_norm_silu(x, groups, weight, bias, scale=scale, shift=shift, activation=activation, cut=cut)
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
    interpret(PARTS + NUMBERS)


GRADIENTS = """
from fastdiff.kernels.group_norm_silu_backward import group_norm_silu_backward
from fastdiff.ops import group_norm_silu as op
reference = op.plain.positional
torch.manual_seed(0)
torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN

def gradients(x, groups, options, activation, grad):
    leaves = {"x": x} | options
    leaves = {name: t.detach().clone().requires_grad_() for name, t in leaves.items()}
    out = reference(num_groups=groups, activation=activation, **leaves)
    return dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad)))

cases = [((2, 6, 5, 7), 3), ((1, 4, 30, 35), 2), ((1, 8, 3), 4), ((2, 300, 3, 3), 2), ((0, 4, 2, 2), 2)]
for (shape, groups), dtype, last in itertools.product(cases, [torch.float32, torch.float16], [False, True]):
    if last and len(shape) != 4:
        continue
    for present in ("", "weight bias scale shift", "weight shift", "bias scale"):
        if "bias" in present and "weight" not in present:
            present = "scale"
        if present != "weight bias scale shift" and (dtype == torch.float16 or shape[1] == 300):
            continue
        layout = torch.channels_last if last else torch.contiguous_format
        x, grad = ((mean + torch.randn(shape)).to(dtype).contiguous(memory_format=layout) for mean in (20, 0))
        sizes = {"weight": shape[1:2], "bias": shape[1:2], "scale": shape[:2], "shift": shape[:2]}
        options = {name: torch.randn(sizes[name]).to(dtype) for name in present.split()}
        activation = "none" if present == "weight shift" else "silu"
        cut = parts(x, groups, last) if len(shape) == 4 and "weight" in options else None
        ours = group_norm_silu_backward(grad, x, groups, activation=activation, cut=cut, **options)
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
    interpret(PARTS + GRADIENTS)


COMPILE = """
from fastdiff.kernels.ahead_of_time import TARGETS, compile_variant, usage
from fastdiff.kernels.group_norm_plan import plan
from fastdiff.kernels.norm_variants import of_group_norm_silu
device = dict(processors=100, second_cache=40 << 20)
for last, dtype, kernels in (
    (False, "fp32", ("statistics", "apply", "sums", "dx")), (True, "bf16", ("statistics", "apply", "sums", "dx"))
):
    size = 4 if dtype == "fp32" else 2
    # The largest tiles that there are.
    whole = plan(2, 32, *((40, 256) if last else (20, 1024)), size, channels_last=last, **device)
    large = plan(1, 32, 4, 512 * 512, size, channels_last=last, **device)
    assert whole.whole and not large.whole
    for kernel in ("whole", *kernels):
        cut = whole if kernel == "whole" else large
        variant = of_group_norm_silu(kernel, dtype, cut, channels_last=last, adaptive=kernel != "apply")
        found = usage(compile_variant(variant, target))
        stack = 8 if (target, kernel, dtype) == ("sm_100", "dx", "bf16") else 0  # docs/notes/gpu-norms.md
        assert found.stack <= stack and found.shared <= TARGETS[target][1], (kernel, last, dtype, found)
print("ok")
"""


PLANS = """
import itertools
from fastdiff.kernels.group_norm_plan import MAX_PARTS, MAX_WHOLE, plan
for samples, groups, width, pixels, last, processors, cache in itertools.product(
    (1, 2, 64), (1, 32), (1, 4, 10, 80, 40000), (1, 35, 4096, 1 << 20), (False, True), (1, 132), (1, 50 << 20, 1 << 62)
):
    for tensors, whole in ((1, None), (2, False)):
        cut = plan(samples, groups, width, pixels, 2, channels_last=last, processors=processors, second_cache=cache,
                   tensors=tensors, whole=whole)
        assert cut.block_channels & (cut.block_channels - 1) == cut.block_pixels & (cut.block_pixels - 1) == 0
        assert (cut.block_channels + cut.more_channels) * cut.block_pixels <= MAX_WHOLE and 1 <= cut.parts <= MAX_PARTS
        assert (cut.parts - 1) * cut.part_pixels < pixels <= cut.parts * cut.part_pixels
        launches = list(cut.launches(samples * groups))
        assert [first for first, _ in launches] == [sum(n for _, n in launches[:i]) for i in range(len(launches))]
        assert sum(n for _, n in launches) == samples * groups
        if cut.whole:
            assert cut.block_channels + cut.more_channels >= width and cut.block_pixels >= pixels
print("ok")
"""


def test_plans_cover_every_group_once():
    interpret(PLANS)


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_ahead_of_time_without_spills(target, tmp_path):
    compile_for(target, f"target = {target!r}" + COMPILE, str(tmp_path))
