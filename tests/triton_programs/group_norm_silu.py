"""group_norm_silu's kernels: numbers in the interpreter, compilation ahead of time."""

from __future__ import annotations

import itertools

import torch
from checks import assert_fits, assert_no_worse
from torch import Tensor

from fastdiff.kernels.group_norm_silu import group_norm_silu, group_norm_silu_backward
from fastdiff.kernels.group_norm_silu.plan import Plan
from fastdiff.ops import group_norm_silu as op

reference = op.plain.positional


def parts(x: Tensor) -> Plan:
    """Small groups cut as large ones are: the last part is shorter, and launches have two groups each."""
    pixels = x.shape[2] * x.shape[3]
    part_pixels = pixels // 3 + 1
    block_channels = 2 if x.shape[1] < 8 else 64
    return Plan(False, block_channels, 256, 4, part_pixels, -(-pixels // part_pixels), 2)


def numbers() -> None:
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
            cut = parts(x) if len(shape) == 4 and present[0] else None
            ours = group_norm_silu(x, groups, weight, bias, scale=scale, shift=shift, activation=activation, cut=cut)
            theirs = reference(*arguments)
            exact = reference(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
            assert ours.stride() == theirs.stride()
            floor = 0.0
            if exact.numel():
                eps = torch.finfo(torch.float32).eps
                floor = float(exact.abs().max()) * (torch.finfo(dtype).eps + 8 * eps)
                # The mean is a float32 as well; of a group of two numbers that are close, much is made of its rounding.
                gain = 1 / (x.double().reshape(shape[0], groups, -1).var(2, correction=0) + 1e-5).sqrt().min()
                gain *= 1 if weight is None else weight.abs().max()
                gain *= 1 if scale is None else (1 + scale).abs().max()
                floor += eps * float(x.abs().max() * gain)
            assert_no_worse(ours, theirs, exact, floor, shape, groups, dtype, last, present)


def gradients() -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
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
            cut = parts(x) if len(shape) == 4 and "weight" in options else None
            ours = group_norm_silu_backward(grad, x, groups, activation=activation, cut=cut, **options)
            theirs = by_autograd(x, groups, options, activation, grad)
            doubles = {name: t.double() for name, t in options.items()}
            exact = by_autograd(x.double(), groups, doubles, activation, grad.double())
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
                terms, largest = 1.0, 0.0
                if want.numel():
                    terms, largest = 1 if name == "x" else x.numel() / want.numel(), float(want.abs().max())
                floor = largest * torch.finfo(dtype).eps + terms**0.5 * eps * size
                assert_no_worse(ours[name], theirs[name], want, floor, shape, groups, dtype, last, present, name)


def by_autograd(x: Tensor, groups: int, options: dict[str, Tensor], activation: str, grad: Tensor) -> dict[str, Tensor]:
    leaves = {"x": x} | options
    leaves = {name: t.detach().clone().requires_grad_() for name, t in leaves.items()}
    out = reference(num_groups=groups, activation=activation, **leaves)
    return dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad)))


def compiles(target: str) -> None:
    from fastdiff.kernels.group_norm_silu.variants import launched

    for last, dtype in ((False, "fp32"), (True, "bf16")):
        adaptive, plain = (launched(target, dtype, channels_last=last, adaptive=there) for there in (True, False))
        assert adaptive.keys() == {"whole", "statistics", "apply", "sums", "dx"}
        for kernel, launch in (adaptive | {"apply": plain["apply"]}).items():
            stack = 8 if (target, kernel, dtype) == ("sm_100", "dx", "bf16") else 0  # docs/notes/gpu-norms.md
            assert_fits(launch, last, dtype, stack=stack)
