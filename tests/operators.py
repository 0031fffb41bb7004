"""What the tests of operators share: the rule of their errors, gradients, and what must not change the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from conftest import assert_no_worse, floor
from torch import Tensor

import fastdiff
from fastdiff.bench.cases import Inputs, results, tensors, wanting_gradients, wide
from fastdiff.ops import conv2d
from fastdiff.runtime.dispatcher import wants_gradient
from fastdiff.runtime.native import core

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_results(op: Any, inputs: Inputs, terms: int = 1, size: float = 0.0, more: float = 0.0) -> list[Tensor]:
    """The results of the kernel, which err at most twice as much as PyTorch's at the same dtype, beside `floor`."""
    with fastdiff.use("cpu"):
        ours = results(op(**inputs))
    theirs, exact = results(op.plain(**inputs)), results(op.plain(**wide(inputs)))
    for mine, other, oracle in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == other.dtype
        assert_no_worse(mine, other, oracle, floor=floor(oracle, mine.dtype, terms, size, more))
    return ours


def assert_no_worse_by_size(
    ours: Tensor, theirs: Tensor, oracle: Tensor, sizes: Tensor, terms: int = 1, more: float = 0.0
) -> None:
    """`assert_no_worse` among the results of each power of ten of `sizes`, so that the error of a large one excuses
    nothing in a small one; and infinities and NaN where PyTorch has them."""
    assert torch.equal(ours.isnan(), theirs.isnan())
    infinite = theirs.isinf()
    assert torch.equal(ours.isinf(), infinite)
    assert torch.equal(ours[infinite], theirs[infinite])
    powers = sizes.double().expand_as(theirs).clamp(min=1e-300).log10().floor()
    finite = theirs.isfinite() & oracle.isfinite()  # float64 is PyTorch's by another way, which may see the padding
    for power in powers[finite].unique():
        at = finite & (powers == power)
        allowed = floor(oracle[at], theirs.dtype, terms, more=more)
        assert_no_worse(
            ours[at], theirs[at], oracle[at], floor=allowed + float(torch.finfo(theirs.dtype).tiny) * 2**-20
        )


def gradients(
    function: Callable[..., Any], inputs: Inputs, cotangents: Sequence[Tensor], without: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Of all tensors among the arguments, but for those in `without`, by name."""
    leaves = wanting_gradients({name: value for name, value in inputs.items() if name not in without})
    found = torch.autograd.grad(results(function(**inputs | leaves)), tensors(leaves), cotangents)
    names = [name for name, value in leaves.items() for _ in tensors({name: value})]
    return {f"{name}_{k}" if name in names[:k] else name: t for k, (name, t) in enumerate(zip(names, found))}


def check_gradients(
    op: Any,
    inputs: Inputs,
    cotangent: Tensor,
    terms: int = 1,
    sizes: Mapping[str, float] | None = None,
    without: Sequence[str] = (),
) -> None:
    """The gradients of an operator with one result by the kernel, as `check_results`. sizes: by name, see `floor`."""
    with fastdiff.use("cpu"):
        ours = gradients(op, inputs, [cotangent], without)
    theirs = gradients(op.plain, inputs, [cotangent], without)
    exact = gradients(op.plain, wide(inputs), [cotangent.double()], without)
    for name, oracle in exact.items():
        assert ours[name].dtype == cotangent.dtype
        allowed = floor(oracle, cotangent.dtype, terms, (sizes or {}).get(name, 0.0))
        assert_no_worse(ours[name], theirs[name], oracle, floor=allowed)


def check_threads(run: Callable[[], Any], counts: Sequence[int] = (1, 2, 5)) -> None:
    """Results with so many threads are the same to the bit."""
    before = torch.get_num_threads()
    found = []
    try:
        for count in counts:
            torch.set_num_threads(count)
            found.append(results(run()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for each in found for a, b in zip(each, found[0], strict=True))


def needs_matrix_units() -> None:
    """Skip a file of tests of the kernels for AMX where there is none, as one skip and not as hundreds."""
    if "amx" not in core.supported_isas():
        pytest.skip("no matrix units, for which these kernels are", allow_module_level=True)


def run_conv2d(algorithm: str | None = None, **inputs: Any) -> Tensor:
    """The C++ kernel of conv2d, by this algorithm."""
    return torch.ops.fastdiff.conv2d(*conv2d.arguments(**inputs)._replace(algorithm=algorithm))


def unsupported(op: Any, *values: Any, **named: Any) -> str | None:
    """Why the C++ kernel cannot take a call."""
    return op.unsupported(op.arguments(*values, **named))


def slower(op: Any, *values: Any, **named: Any) -> str | None:
    """Why PyTorch is faster with a call."""
    a = op.arguments(*values, **named)
    return op.slower(a) or (op.slower_backward(a) if wants_gradient(a) else None)
