"""Which calls reach the Triton kernels, through the operators and the sampling loop, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdiff
from fastdiff.kernels import ada_layer_norm, attention, group_norm_silu, linear_combine

ran: list[str] = []  # which kernels


def count(owner: Any, attribute: str, name: str) -> None:
    """Note the calls of a function as those of this kernel."""
    function = getattr(owner, attribute)

    def counted(*args: Any, **kwargs: Any) -> Any:
        ran.append(name)
        return function(*args, **kwargs)

    setattr(owner, attribute, counted)


count(ada_layer_norm.Forward, "__call__", "ada_layer_norm")
count(ada_layer_norm, "ada_layer_norm_backward", "ada_layer_norm_backward")
count(attention.Forward, "__call__", "attention_forward")
count(attention, "attention_backward", "attention_backward")
count(group_norm_silu.Forward, "__call__", "group_norm_silu")
count(group_norm_silu, "group_norm_silu_backward", "group_norm_silu_backward")
count(linear_combine.Forward, "__call__", "linear_combine")


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


def run(function: Callable, leaves: Sequence[Tensor], backend: str) -> tuple[Tensor, ...]:
    with fastdiff.use(backend):
        out = function(*leaves)
        return out, *torch.autograd.grad(out.square().sum(), leaves)


def operators() -> None:
    """The same call under two backends, with gradients."""
    ops = fastdiff.ops
    torch.manual_seed(0)
    x, y, row, vectors = leaf(2, 4, 8), leaf(2, 4, 8), [leaf(2, 1, 8) for _ in range(2)], [leaf(8) for _ in range(2)]
    image, adaptive = leaf(2, 8, 3, 5), [leaf(2, 8) for _ in range(2)]
    video = leaf(2, 4, 2, 3, 2).detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    heads = [leaf(1, 2, n, 16) for n in (5, 7, 7)]
    # `mask` is of no kernel's gradient; `frozen` wants none.
    frozen, mask = torch.randn(2, 1, 8), torch.rand(5, 7) < 0.7
    cases: list[tuple[str, Callable, Sequence[Tensor]]] = [
        ("ada_layer_norm", lambda a, b, c, w, v: ops.ada_layer_norm(a, b, c, weight=w, bias=v), [x, *row, *vectors]),
        ("ada_layer_norm", lambda a, b: ops.ada_layer_norm(a, frozen, b), [x.transpose(1, 2).contiguous().mT, row[0]]),
        (
            "group_norm_silu",
            lambda a, w, v, s, t: ops.group_norm_silu(a, 4, w, v, scale=s, shift=t),
            [image, *vectors, *adaptive],
        ),
        ("group_norm_silu", lambda a: ops.group_norm_silu(a, 2, activation=None), [video]),
        ("attention", ops.attention, heads),
        ("attention", lambda q, k, v: ops.attention(q, k, v, mask=mask, scale=0.3), heads),
        ("linear_combine", lambda a, b: ops.linear_combine([[1.5, -2.0]], [a, b])[0], [x, y]),
    ]
    for op, function, leaves in cases:
        ran.clear()
        theirs = run(function, leaves, "reference")
        assert not ran
        ours = run(function, leaves, "triton")
        assert len(ran) == 2, ran
        assert all(op in name for name in ran), ran
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
        assert ours[0].stride() == theirs[0].stride() or op == "attention"


@fastdiff.use("triton")
def attention_under_transformations() -> None:
    torch.manual_seed(0)
    heads = [leaf(1, 2, n, 16) for n in (5, 7, 7)]
    function = fastdiff.ops.attention
    compiled = torch.compile(lambda *a: function(*a).sum(), backend="aot_eager", fullgraph=True)
    torch.autograd.grad(compiled(*heads), heads)
    assert ran == ["attention_forward", "attention_backward"]
    # A gradient of a gradient goes through PyTorch.
    (first,) = torch.autograd.grad(function(*heads).square().sum(), heads[:1], create_graph=True)
    assert torch.autograd.grad(first.sum(), heads[1])[0].abs().sum() > 0
    out, maps = function(*heads, return_maps=True)
    torch.testing.assert_close(maps.sum(-1), torch.ones(1, 2, 5))
    torch.testing.assert_close(maps @ heads[2], out, rtol=1e-5, atol=1e-6)
    for dim, dtype, message in [(300, torch.float32, "up to 256, not 300"), (8, torch.float64, "not torch.float64")]:
        q = torch.zeros(1, 1, 2, dim, dtype=dtype)
        with pytest.raises(NotImplementedError, match=f"triton backend was asked for.*{message}"):
            function(q, q, q)


def sampling() -> None:
    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x)

    options: dict[str, Any] = dict(schedule="linear", prediction="eps", steps=3, seed=1)
    with fastdiff.use("triton"):
        ours = fastdiff.sample(model, (1, 3, 4, 4), **options)
    with fastdiff.use("reference"):
        assert torch.equal(ours, fastdiff.sample(model, (1, 3, 4, 4), **options))
    assert "Triton" in {c.runs for c in fastdiff.explain().choices} or fastdiff.runtime.choice.current() == "auto"
