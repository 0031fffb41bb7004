"""PyTorch's own samples of functions (OpInfo) against the operators that stand for them, forward and backward.

Not collected by `python -m pytest`; tests/external/run.sh runs it. Each sample goes two ways: through the operator, and
through a model that calls the function as PyTorch's users spell it, after `fastdiff.optimize`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_no_worse, floor
from torch import Tensor, nn
from torch.testing._internal.common_methods_invocations import op_db

import fastdiff
from fastdiff import ops

Call = Callable[..., Any]
FUNCTIONS = ("scaled_dot_product_attention", "group_norm", "layer_norm", "linear", "conv2d")


def _samples() -> list[Any]:
    infos = {info.name.removeprefix("nn.functional."): info for info in op_db if not info.variant_test_name}
    return [
        pytest.param(name, number, dtype, id=f"{name}-{number}-{str(dtype).removeprefix('torch.')}")
        for name in FUNCTIONS
        for dtype in (torch.float32, torch.bfloat16)
        for number, _ in enumerate(infos[name].sample_inputs("cpu", dtype))
    ]


def _sample(name: str, number: int, dtype: torch.dtype) -> tuple[list[Any], dict[str, Any]]:
    """Arguments by position and by name, seeded."""
    torch.manual_seed(number)
    (info,) = (i for i in op_db if i.name == f"nn.functional.{name}" and not i.variant_test_name)
    sample = list(info.sample_inputs("cpu", dtype))[number]
    return [sample.input, *sample.args], dict(sample.kwargs)


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
               scale: Any = None, enable_gqa: bool = False) -> Tensor | str:  # fmt: skip
    if dropout_p:
        return "dropout is drawn from other random numbers"
    if enable_gqa:
        return "the operator wants as many heads of keys as of queries"
    if q.ndim != 4 or q.shape[:-2] != k.shape[:-2] or v.shape[:-2] != k.shape[:-2]:
        return "the operator takes (B, H, S, D)"
    if is_causal:
        attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.ndim > 4:
        return "the operator takes masks of up to four dimensions"
    return ops.attention(q, k, v, mask=attn_mask, scale=scale)


def _group_norm(x: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor | str:
    if x.numel() == 0:
        return "x is empty"
    return ops.group_norm_silu(x, num_groups, weight, bias, eps, activation=None)


def _layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor | str:
    if len(shape) != 1 or x.numel() == 0:
        return "the operator takes one dimension of channels"
    if bias is not None and weight is None:
        return "the operator takes a bias beside a weight"
    nothing = torch.zeros(1, 1, x.shape[-1], dtype=x.dtype)
    flat = x.reshape(1, -1, x.shape[-1])
    return ops.ada_layer_norm(flat, nothing, nothing, weight=weight, bias=bias, eps=eps).reshape(x.shape)


def _linear(x: Tensor, weight: Tensor, bias: Any = None) -> Tensor | str:
    if weight.ndim != 2 or x.ndim < 1:
        return "the operator takes (N, K)"
    return ops.linear(x.reshape(1, -1, x.shape[-1]), weight, bias).reshape(*x.shape[:-1], weight.shape[0])


def _conv2d(x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
            groups: int = 1) -> Tensor | str:  # fmt: skip
    same = [value[0] if isinstance(value, tuple) and len({*value}) == 1 else value for value in (stride, padding)]
    if x.ndim != 4 or groups != 1 or dilation not in (1, (1, 1)) or not all(isinstance(each, int) for each in same):
        return "the operator takes one number each for stride and padding, and no dilation or groups"
    return ops.conv2d(x, weight, bias, stride=same[0], padding=same[1])


OPERATORS: dict[str, Call] = {
    "scaled_dot_product_attention": _attention, "group_norm": _group_norm, "layer_norm": _layer_norm,
    "linear": _linear, "conv2d": _conv2d,
}  # fmt: skip


class Model(nn.Module):
    """The function with the sample's arguments, between operations that the compiler leaves as they are."""

    def __init__(self, function: Call) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self.function(*args, **kwargs)
        return result


def _roundings(name: str, args: list[Any]) -> float:
    """Of the largest number in float32: a weight of attention is exp of a score, which keeps its rounding."""
    if name != "scaled_dot_product_attention":
        return 1.0
    q, k = (x.detach().double() for x in args[:2])
    return float((q.norm(dim=-1).max() * k.norm(dim=-1).max()) / q.shape[-1] ** 0.5)


def _wide(value: Any) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().double() if floating else value


def _check(ours: Tensor, theirs: Tensor, oracle: Tensor, terms: int, more: float) -> None:
    assert ours.dtype == theirs.dtype
    if oracle.isfinite().all():
        more_in_dtype = (
            2 * torch.finfo(ours.dtype).eps * float(oracle.abs().max()) if more != 1 and oracle.numel() else 0
        )
        allowed = floor(oracle, ours.dtype, terms, more=more) + more_in_dtype
        assert_no_worse(ours, theirs, oracle, floor=allowed)
    else:
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize(("name", "number", "dtype"), _samples())
def test_operator(name: str, number: int, dtype: torch.dtype) -> None:
    args, kwargs = _sample(name, number, dtype)
    if name == "scaled_dot_product_attention" and args[0].ndim == 3:
        args = [x[None] for x in args]  # PyTorch, too, has another kernel for three dimensions
    theirs_of: Call = getattr(F, name)
    leaves = [x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
    ours = OPERATORS[name](*leaves, **kwargs)
    if isinstance(ours, str):
        pytest.skip(ours)
    theirs = theirs_of(*leaves, **kwargs)
    wide = [_wide(x) for x in args]
    wide = [x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in wide]
    oracle = theirs_of(*wide, **{key: _wide(value) for key, value in kwargs.items()})
    assert ours.shape == theirs.shape
    terms, more = max(x.numel() for x in leaves if isinstance(x, Tensor)), _roundings(name, leaves)
    _check(ours.detach(), theirs.detach(), oracle.detach(), terms, more)
    wanted = [index for index, x in enumerate(leaves) if isinstance(x, Tensor) and x.requires_grad]
    cotangent = torch.randn_like(theirs.detach())
    found = torch.autograd.grad(ours, [leaves[k] for k in wanted], cotangent, allow_unused=True)
    expected = torch.autograd.grad(theirs, [leaves[k] for k in wanted], cotangent, allow_unused=True)
    exact = torch.autograd.grad(oracle, [wide[k] for k in wanted], cotangent.double(), allow_unused=True)
    for mine, other, best in zip(found, expected, exact, strict=True):
        if best is None:
            assert mine is None or not mine.any()
        else:
            _check(mine, other, best, terms, more)


@pytest.mark.parametrize(("name", "number", "dtype"), _samples())
def test_optimized_model(name: str, number: int, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    args, kwargs = _sample(name, number, dtype)
    if kwargs.get("dropout_p"):
        pytest.skip("dropout is random")
    function: Call = getattr(F, name)
    args = [x.detach() if isinstance(x, Tensor) else x for x in args]
    model = fastdiff.optimize(Model(function).eval())
    with torch.no_grad():
        ours, theirs = model(*args, **kwargs), function(*args, **kwargs)
        oracle = function(*map(_wide, args), **{key: _wide(value) for key, value in kwargs.items()})
    assert ours.stride() == theirs.stride()
    _check(ours, theirs, oracle, max(x.numel() for x in args if isinstance(x, Tensor)), _roundings(name, args))
