"""residual_ada_layer_norm's kernels: numbers in the interpreter, compilation ahead of time."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from ada_layer_norm import largest_term, rounding
from checks import assert_fits, assert_no_worse
from torch import Tensor

from fastdiff.kernels.ada_layer_norm import ada_layer_norm
from fastdiff.kernels.residual_ada_layer_norm import residual_ada_layer_norm, residual_ada_layer_norm_backward

DTYPES = (torch.float32, torch.float16)
PRESENT = ("", "gate", "gate scale shift", "scale", "shift", "weight", "weight bias", "gate scale shift weight bias")
ROWS = ("", "gate scale shift", "scale", "gate shift")  # which have rows of their own


def reference(y: Tensor, residual: Tensor, gate: Tensor | None = None, **modulation: Tensor) -> tuple[Tensor, Tensor]:
    h = residual + (y if gate is None else gate * y)
    return h, norm(h, **modulation)


def norm(
    h: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    z = F.layer_norm(h, h.shape[-1:], weight, bias, 1e-6)
    z = z if scale is None else z * (1 + scale)
    return z if shift is None else z + shift


def make(shape: tuple[int, int, int], dtype: torch.dtype, present: str, rows: str, mean: float) -> dict[str, Tensor]:
    b, s, c = shape
    y, residual = ((m + torch.randn(b, s, 2 * c)).to(dtype)[..., :c] for m in (0, mean))
    sizes = {name: (b, s if name in rows.split() else 1, c) for name in ("gate", "scale", "shift")}
    sizes |= {"weight": (c,), "bias": (c,)}
    return {"y": y, "residual": residual} | {name: torch.randn(sizes[name]).to(dtype) for name in present.split()}


def numbers() -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    for shape, dtype, present, rows in itertools.product(
        [(2, 3, 7), (1, 2, 64), (1, 4, 1152), (0, 2, 8)], DTYPES, PRESENT, ROWS
    ):
        tensors = make(shape, dtype, present, rows, 50)
        h, z = residual_ada_layer_norm(**tensors)
        doubles = {name: t.double() for name, t in tensors.items()}
        eps, single = torch.finfo(dtype).eps, torch.finfo(torch.float32).eps
        what = shape, dtype, present, rows
        exact = reference(**doubles)[0]
        largest = float(exact.abs().max()) if exact.numel() else 0.0
        # Rounded once, of two operations in float32.
        assert_no_worse(h, exact.to(dtype), exact, largest * 4 * single, *what)
        modulation = {name: t for name, t in tensors.items() if name not in ("y", "residual", "gate")}
        exact = norm(h.double(), **{name: doubles[name] for name in modulation})
        floor = float(exact.abs().max()) * (eps + 4 * single) if exact.numel() else 0.0
        assert_no_worse(z, norm(h, **modulation), exact, floor, *what)
        if "scale shift" in present:
            assert torch.equal(z, ada_layer_norm(h, **modulation)), what


def gradients() -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    shapes = [(2, 7, 7), (1, 70, 64), (1, 1, 5), (0, 2, 8)]
    for shape, dtype, present, rows, both in itertools.product(shapes, DTYPES, PRESENT, ROWS, [False, True]):
        if (rows and not set(rows.split()) & set(present.split())) or (rows and not both):
            continue
        if dtype is not torch.float32 and shape[0] == 1:
            continue
        b, s, _ = shape
        tensors = make(shape, dtype, present, rows, 20)
        grad_h, grad_z = torch.randn(2, *shape).to(dtype)
        h, _ = residual_ada_layer_norm(**tensors)
        given = {name: t for name, t in tensors.items() if name != "residual"}
        ours = residual_ada_layer_norm_backward(grad_h if both else None, grad_z, h, **given)
        theirs = by_autograd(tensors, grad_h if both else torch.zeros_like(h), grad_z)
        # Of the function at h as it was rounded: with the residual that gives it.
        doubles = {name: t.double() for name, t in tensors.items()}
        doubles["residual"] = h.double() - doubles["y"] * doubles.get("gate", torch.ones(()).double())
        exact = by_autograd(doubles, (grad_h if both else torch.zeros_like(h)).double(), grad_z.double())
        size = largest_term(h, grad_z, **{n: t for n, t in given.items() if n in ("scale", "weight", "bias")})
        if h.numel():
            size += float(grad_h.abs().max())
            size *= max(1.0, *(float(given[name].abs().max()) for name in ("y", "gate") if name in given))
        assert ours.keys() == exact.keys()
        assert not h.numel() or len({t.data_ptr() for t in ours.values()}) == len(ours)  # none is another's
        for name, want in exact.items():
            terms = b * s if name in ("weight", "bias") else s if want.shape[1] == 1 else 1
            floor = rounding(want, dtype, terms, size)
            assert_no_worse(ours[name], theirs[name], want, floor, shape, dtype, present, rows, both, name)


def by_autograd(tensors: dict[str, Tensor], grad_h: Tensor, grad_z: Tensor) -> dict[str, Tensor]:
    leaves = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    return dict(zip(leaves, torch.autograd.grad(reference(**leaves), list(leaves.values()), (grad_h, grad_z))))


def compiles(target: str) -> None:
    from fastdiff.kernels.residual_ada_layer_norm.variants import DETAILS, launched

    for dtype, detail in itertools.product(("fp32", "fp16", "bf16"), DETAILS):
        if dtype == "fp16" or detail == DETAILS[0] or target in ("sm_80", "sm_90"):
            for launch in launched(target, dtype, 1152, detail).values():
                assert_fits(launch, dtype, detail)
