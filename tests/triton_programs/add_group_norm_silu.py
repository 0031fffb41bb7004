"""add_group_norm_silu's kernels: numbers in the interpreter, compilation ahead of time."""

from __future__ import annotations

import itertools

import torch
from checks import assert_fits, assert_no_worse
from group_norm_silu import rounding, small_rows

import fastdiff
from fastdiff.bench.cases.add_group_norm_silu import ADAPTIVE, BEFORE, make
from fastdiff.kernels.add_group_norm_silu import add_group_norm_silu
from fastdiff.ops import add_group_norm_silu as op
from fastdiff.ops import group_norm_silu as norm


def numbers() -> None:
    """h is rounded once, and z is the norm of h, by every plan and with everything left out in turn."""
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    shapes = [((2, 12, 5, 7), 3), ((1, 40, 9, 6), 4), ((1, 3, 6, 6), 1), ((0, 4, 2, 2), 2)]
    present = [[n for n, there in zip(BEFORE, flags) if not there] for flags in itertools.product([0, 1], repeat=3)]
    for (shape, groups), dtype, left_out in itertools.product(shapes, [torch.float32, torch.float16], present):
        if left_out and (shape[1] != 12 or (dtype == torch.float16) != (len(left_out) == 2)):
            continue
        given = make(shape, dtype, groups=groups, mean=20.0, left_out=(*left_out, *(ADAPTIVE if left_out else ())))
        added = {name: given[name] for name in ("x", *BEFORE)}
        exact_h = sum(t.double().reshape(as_map(name, t, shape)) for name, t in added.items() if t is not None)
        plans = small_rows(shape[0], groups, shape[1] // groups, shape[2] * shape[3]) if shape[0] else []
        for cut in [None, *(plans[-1:] if left_out else plans)]:
            h, z = add_group_norm_silu(**given, cut=cut)
            what = shape, dtype, left_out, cut
            assert h.is_contiguous(memory_format=torch.channels_last), what
            largest = float(exact_h.abs().max()) if exact_h.numel() else 0.0
            assert_no_worse(h, exact_h.to(dtype), exact_h, 4 * largest * torch.finfo(torch.float32).eps, *what)
            of_norm = {name: value for name, value in given.items() if name not in ("x", *BEFORE)}
            theirs = norm.plain(h, **of_norm)
            wide = {name: t.double() if isinstance(t, torch.Tensor) else t for name, t in of_norm.items()}
            exact = norm.plain(h.double(), **wide)
            floor = rounding(exact, h, groups, given["weight"], given["scale"])
            assert_no_worse(z, theirs, exact, floor, *what)


def as_map(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that makes a vector of (C,) or (N, C) part of a sum of maps."""
    return {"conv_bias": (1, shape[1], 1, 1), "channel_bias": (*shape[:2], 1, 1)}.get(name, tuple(tensor.shape))


@fastdiff.use("triton")
def operator() -> None:
    """The operator reaches the kernel, says what it leaves to PyTorch, and has gradients."""
    for shape, groups in (((2, 8, 5, 4), 4), ((1, 8, 2, 3, 4), 2)):
        given = make(shape, groups=groups)
        a = op.arguments(**given)
        assert op.takes(a) == "triton"
        h, z = op(**given)
        with fastdiff.use("reference"):
            theirs = op(**given)
        for ours, other in zip((h, z), theirs):
            torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5)
            last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
            assert ours.is_contiguous(memory_format=last)
    contiguous = op.arguments(**make((2, 8, 5, 4), groups=4, channels_last=False))
    reason = op.unsupported_by_triton(contiguous)
    assert reason is not None
    assert "channels-last maps" in reason
    many = torch.empty((1, 9000, 129, 128), device="meta", memory_format=torch.channels_last)
    assert "no plan for 9000 groups" in str(op.triton_limits(op.Arguments(many, 9000)))
    given = make((2, 8, 5, 4), groups=4)
    leaves = {name: t.requires_grad_() for name, t in given.items() if isinstance(t, torch.Tensor)}
    found = torch.autograd.grad(sum(y.square().sum() for y in op(**given)), list(leaves.values()))
    with fastdiff.use("reference"):
        wanted = torch.autograd.grad(sum(y.square().sum() for y in op(**given)), list(leaves.values()))
    for ours, other in zip(found, wanted):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)


def compiles(target: str) -> None:
    from fastdiff.kernels.add_group_norm_silu.variants import DETAILS, SHAPES, launched

    for dtype, shape, detail in itertools.product(("fp32", "bf16"), SHAPES, DETAILS):
        for launch in launched(target, dtype, shape, detail).values():
            assert_fits(launch, dtype, shape, detail)
