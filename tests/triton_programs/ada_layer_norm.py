"""ada_layer_norm's kernels: numbers in the interpreter, compilation ahead of time."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from checks import assert_fits, assert_no_worse
from torch import Tensor

from fastdiff.kernels.ada_layer_norm import ada_layer_norm, ada_layer_norm_backward
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
