"""ada_layer_norm's kernels: numbers in the interpreter, compilation ahead of time."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from checks import assert_fits, assert_no_worse
from torch import Tensor

from fastdiff.kernels.ada_layer_norm import ada_layer_norm, ada_layer_norm_backward
from fastdiff.kernels.ada_layer_norm.forward import forward
from fastdiff.kernels.ada_layer_norm.plan import Plan, alternatives, plan, single
from fastdiff.kernels.ahead_of_time.compile import launches
from fastdiff.ops import ada_layer_norm as op

reference = op.plain.positional
DTYPES = (torch.float32, torch.float16)


def numbers() -> None:
    torch.manual_seed(0)
    for shape, dtype, affine in itertools.product(
        [(2, 3, 7), (1, 2, 64), (2, 4, 1152), (0, 2, 8)], DTYPES, [False, True]
    ):
        b, _, c = shape
        scale, shift = torch.randn(b, 1, 6 * c).to(dtype).chunk(6, dim=-1)[2:4]
        x = (50 + torch.randn(shape)).to(dtype)
        options = {"weight": torch.randn(c).to(dtype), "bias": torch.randn(c).to(dtype)} if affine else {}
        ours, theirs = ada_layer_norm(x, scale, shift, **options), reference(x, scale, shift, **options)
        exact = reference(x.double(), scale.double(), shift.double(), **{k: v.double() for k, v in options.items()})
        eps = torch.finfo(dtype).eps + 4 * torch.finfo(torch.float32).eps
        floor = float(exact.abs().max()) * eps if exact.numel() else 0.0
        assert_no_worse(ours, theirs, exact, floor, shape, dtype, affine)


def rows() -> None:
    """A row has the same numbers to the bit, however many rows share a program, and whatever these are."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    for shape, dtype, every in itertools.product([(2, 13, 7), (1, 3, 320), (3, 1, 64)], DTYPES, [False, True]):
        b, s, c = shape
        scale, shift, gate = torch.randn(b, s if every else 1, 6 * c).to(dtype).chunk(6, dim=-1)[2:5]
        x, residual = ((30 + torch.randn(b, s, 2 * c)).to(dtype)[..., :c] for _ in range(2))
        x[0, 0, 0], x[0, s // 2, 1] = torch.finfo(dtype).max / 2, 1e30 if dtype == torch.float32 else 1e4
        vector = torch.randn(c).to(dtype)
        given = dict(scale=scale, shift=shift, weight=vector, bias=vector, eps=1e-6)
        for branch in ({}, {"residual": residual}, {"residual": residual, "gate": gate}):
            wanted = forward(x, **given, **branch, cut=Plan(1, 1))
            for each in (2, 4, 8):
                found = forward(x, **given, **branch, cut=Plan(each, 4))
                assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(found, wanted)), shape
    x = torch.randn(1, 9, 40)
    x[0, 3, 5] = math.nan
    found = forward(x, scale=None, shift=None, weight=None, bias=None, eps=1e-6, cut=Plan(8, 4))[1]
    assert torch.isnan(found).any(-1).tolist() == [[row == 3 for row in range(9)]]


def plans() -> None:
    """Those that were measured are taken for their shapes; few rows leave no multiprocessor idle."""
    for (batch, tokens, channels), each in {(2, 4096, 320): 8, (2, 1024, 640): 2, (2, 256, 1280): 1}.items():
        chosen = plan(batch, tokens, channels, 2, 132)
        assert chosen.rows_each == each, channels
        assert plan(batch, tokens, channels, 4, 132) == single(channels)
        others = alternatives(chosen, tokens, channels)
        assert chosen not in others
        assert len({other.said for other in others}) == len(others)
    assert plan(2, 1, 320, 2, 132) == plan(1, 64, 320, 2, 132) == single(320)
    assert alternatives(single(320), 1, 320) == []
    assert plan(1 << 20, 2, 320, 2, 132) == Plan(2, 4)


def gradients() -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    shapes = [(2, 7, 7), (1, 70, 64), (2, 4, 1152), (1, 1, 5), (0, 2, 8)]
    for shape, dtype, affine, whole in itertools.product(shapes, DTYPES, *[[False, True]] * 2):
        b, s, c = shape
        scale, shift = torch.randn(b, s if whole else 1, 6 * c).to(dtype).chunk(6, dim=-1)[2:4]
        if whole:
            shift = shift[:, :1]  # one of each kind
        x, grad = ((m + torch.randn(b, s, 2 * c)).to(dtype)[..., :c] for m in (20, 0))
        tensors = {"x": x, "scale": scale, "shift": shift}
        tensors |= {"weight": torch.randn(c).to(dtype), "bias": torch.randn(c).to(dtype)} if affine else {}
        ours = ada_layer_norm_backward(grad, **tensors, eps=1e-6)
        theirs = by_autograd(tensors, grad)
        exact = by_autograd({name: t.double() for name, t in tensors.items()}, grad.double())
        size = largest_term(x, grad, **{name: t for name, t in tensors.items() if name not in ("x", "shift")})
        for name, want in exact.items():
            terms = b * s if name in ("weight", "bias") else s if want.shape[1] == 1 else 1
            floor = rounding(want, dtype, terms, size)
            assert_no_worse(ours[name], theirs[name], want, floor, shape, dtype, affine, whole, name)


def by_autograd(tensors: dict[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    leaves = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    return dict(zip(leaves, torch.autograd.grad(reference(**leaves, eps=1e-6), list(leaves.values()), grad)))


def largest_term(
    x: Tensor, grad: Tensor, scale: Tensor | None = None, weight: Tensor | None = None, bias: Tensor | None = None
) -> float:
    """What terms of the gradients' sums are bounded by: the product of the largest factors. The mean is rounded to eps
    |x|, so normalized values err by that over the deviation."""
    if not x.numel():
        return 0.0
    x = x.double()
    deviation = (x.var(-1, correction=0) + 1e-6).sqrt().min()
    normal = F.layer_norm(x, x.shape[-1:], eps=1e-6).abs().max()
    factors = [grad, *([] if scale is None else [1 + scale.abs()]), *([] if weight is None else [weight])]
    size = torch.stack([f.double().abs().max().clamp_min(1) for f in factors]).prod()
    size *= (1 + normal + (0 if bias is None else bias.abs().max())) * (1 + x.abs().max() / deviation)
    return float(size * (1 / deviation).clamp_min(1) * (1 + normal))


def rounding(want: Tensor, dtype: torch.dtype, terms: int, size: float) -> float:
    """Of the result, and of a sum of terms up to `size`: sums of products err by eps times the absolute values."""
    if not want.numel():
        return 0.0
    return float(want.abs().max()) * torch.finfo(dtype).eps + terms**0.5 * torch.finfo(torch.float32).eps * size


def compiles(target: str) -> None:
    from fastdiff.kernels.ada_layer_norm.variants import launched

    for kernel, dtype, rows in [
        *(("forward", dtype, False) for dtype in ("fp32", "fp16", "bf16")),
        *(("backward", dtype, False) for dtype in ("fp32", "bf16")),
        ("backward", "fp16", True),
    ]:
        assert_fits(launched(target, dtype, 1152, rows=rows)[kernel], dtype, rows)
    for dtype, channels in itertools.product((torch.float32, torch.float16), (320, 640)):
        x, row, vector = (
            torch.empty(s, dtype=dtype, device="meta") for s in ((2, 4096, channels), (2, 1, channels), (channels,))
        )
        given = dict(residual=x, gate=row, scale=row, shift=x, weight=vector, bias=vector, eps=1e-6)
        for cut in alternatives(single(channels), 4096, channels):
            (launch,) = launches(target, forward, x, **given, cut=cut)
            assert_fits(launch, dtype, channels, cut)
