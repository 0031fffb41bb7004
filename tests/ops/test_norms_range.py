"""Norms of numbers at the ends of float32's range, where the variance of ordinary arithmetic overflows.

The truth is float64's. Infinities and NaN give what PyTorch gives in float64: NaN for the whole row or group. A kernel
may not be further off than twice PyTorch, beside the roundings of the result, and these alone where PyTorch gives NaN.
"""

import math

import pytest
import torch
from conftest import floor

import fastdiff
from fastdiff.ops import ada_layer_norm, group_norm_silu, residual_ada_layer_norm

C = 64
INF, NAN = math.inf, math.nan
# What stands at some places of ordinary numbers.
PUT = {
    "1e18": {3: 1e18}, "1e19": {3: 1e19}, "-1e19": {3: -1e19}, "3e19": {3: 3e19}, "1e20": {3: 1e20}, "1e25": {3: 1e25},
    "1e30": {3: 1e30}, "3e38": {3: 3e38}, "-3e38": {3: -3e38}, "largest": {3: 3.4028234e38}, "infinity": {3: INF},
    "-infinity": {3: -INF}, "NaN": {3: NAN}, "both ends": {3: 3e38, 5: -3e38}, "twice": {3: 3e38, 9: 3e38},
    "mixed": {3: 1e30, 5: 3e38, 7: -1e25, 11: 1e-40}, "both infinities": {3: INF, 5: -INF},
}  # fmt: skip
# Or all numbers times this.
TIMES = {"all 1e18": 1e18, "all 1e19": 1e19, "all 1e30": 1e30, "all 3e37": 3e37, "1e-30": 1e-30, "subnormal": 1e-40}
CONSTANT = {"constant 1e-40": 1e-40, "zero": 0.0}
NAMES = [*PUT, *TIMES, *CONSTANT]


def hard(name, shape, dtype=torch.float32):
    """Rows of C numbers of which the second, if there is one, is as the name says, and the others are ordinary."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = x.view(-1, C)
    row = rows[min(1, len(rows) - 1)]
    if name in PUT:
        for place, value in PUT[name].items():
            row[place] = value
    elif name in TIMES:
        row *= TIMES[name]
    else:
        row.fill_(CONSTANT[name])
    return x.to(dtype).clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max) if "infin" not in name else x.to(dtype)


def compare(op, inputs, names, **settings):
    """The result and gradients of the tensors by their names, by the operator and by PyTorch, with float64's."""
    weights = None
    found = []
    for function, dtype in ((op, None), (op.plain, None), (op.plain, torch.float64)):
        tensors = {k: v.detach().to(dtype or v.dtype).requires_grad_(k in names) for k, v in inputs.items()}
        results = function(**tensors, **settings)
        results = results if isinstance(results, tuple) else (results,)
        if weights is None:
            weights = [torch.randn(y.shape, generator=torch.Generator().manual_seed(1)) for y in results]
        sum((y * w.to(y.dtype)).sum() for y, w in zip(results, weights)).backward()
        found.append([*(y.detach() for y in results), *(tensors[k].grad for k in names)])
    for ours, theirs, truth in zip(*found):
        check(ours, theirs, truth)


def check(ours, theirs, truth):
    largest = torch.finfo(ours.dtype).max
    fits = truth.abs() <= largest
    assert torch.equal(torch.isnan(ours), torch.isnan(truth))
    for row, other, true, inside in zip(*(t.reshape(-1, C) for t in (ours, theirs, truth, fits))):
        if not inside.any():
            continue
        error = (row.double() - true)[inside].abs().max().item()
        allowed = (other.double() - true)[inside].abs().max().item()
        allowed = 0.0 if math.isnan(allowed) else allowed
        size = true[inside].abs().max().item()
        bound = 2 * allowed + floor(true[inside], ours.dtype, C, size, more=4) + 8 * torch.finfo(torch.float32).tiny
        assert error <= bound, f"error {error:.3e}, torch's {allowed:.3e}, of {size:.3e}"


def vectors(*shape, seed=3):
    return 0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_forward_of_ada_layer_norm(name, dtype, isa):
    x = hard(name, (2, 3, C), dtype)
    inputs = dict(x=x, scale=vectors(2, 1, C).to(dtype), shift=vectors(2, 1, C, seed=4).to(dtype))
    with torch.no_grad():
        for more in ({}, dict(weight=vectors(C).to(dtype), bias=vectors(C).to(dtype))):
            given = inputs | more
            check(*(f(**{k: v.to(t) for k, v in given.items()}) for f, t in _three(ada_layer_norm, dtype)))
            others = x.clone()
            others.view(-1, C)[1] = 1.0
            # The other rows are what they are without it.
            one, other = ada_layer_norm(**given), ada_layer_norm(**(given | {"x": others}))
            torch.testing.assert_close(one.view(-1, C)[2:], other.view(-1, C)[2:], rtol=2e-2, atol=1e-5)


def _three(op, dtype):
    return (op, dtype), (op.plain, dtype), (op.plain, torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_forward_of_residual_ada_layer_norm(name, isa):
    residual, y = hard(name, (1, 3, C)), vectors(1, 3, C)
    inputs = dict(y=y, residual=residual, gate=vectors(1, 1, C), scale=vectors(1, 1, C, seed=5))
    with torch.no_grad():
        found = [f(**{k: v.to(t) for k, v in inputs.items()}) for f, t in _three(residual_ada_layer_norm, y.dtype)]
    for each in zip(*found):
        check(*each)


LAYOUTS = {
    "groups one by one": ((1, 8 * C, 1, 1), 8, torch.contiguous_format),
    "parts": ((1, 2 * C, 1, 1), 2, torch.contiguous_format),
    "pixels": ((8, 16, 2, 2), 1, torch.contiguous_format),
    "few": ((2, 16, 2, 2), 1, torch.contiguous_format),
    "channels last": ((2, 16, 2, 2), 1, torch.channels_last),
}


@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_forward_of_group_norm(name, layout, activation, isa):
    shape, groups, form = LAYOUTS[layout]
    x = hard(name, shape).contiguous(memory_format=form)
    with torch.no_grad():
        found = [f(x.to(t), groups, activation=activation) for f, t in _three(group_norm_silu, x.dtype)]
    check(*(each.contiguous() for each in found))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("op", ["ada_layer_norm", "residual_ada_layer_norm", "group_norm_silu", "channels last"])
def test_gradients(op, name):
    with fastdiff.use("cpu"):
        if op == "ada_layer_norm":
            inputs = dict(x=hard(name, (1, 3, C)), scale=vectors(1, 1, C), shift=vectors(1, 1, C, seed=4))
            compare(ada_layer_norm, inputs, ("x", "scale", "shift"))
        elif op == "residual_ada_layer_norm":
            inputs = dict(y=vectors(1, 3, C), residual=hard(name, (1, 3, C)), gate=vectors(1, 1, C))
            compare(residual_ada_layer_norm, inputs, ("residual",))
        else:
            shape, form = (8, 16, 2, 2), torch.channels_last if op == "channels last" else torch.contiguous_format
            inputs = dict(x=hard(name, shape).contiguous(memory_format=form), weight=vectors(16))
            compare(group_norm_silu, inputs, ("x",), num_groups=1, activation=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [1e18, 1e19, 1e30, 3e38, -3e38])
def test_rows_of_one_number_are_zero_beside_the_shift(value, dtype, isa):
    """In float64 PyTorch gives the roundings of the mean, times 1 / sqrt(eps), and in float32 NaN."""
    with torch.no_grad():
        x, shift = torch.full((2, 3, C), value, dtype=dtype), vectors(2, 1, C).to(dtype)
        assert torch.equal(ada_layer_norm(x, torch.zeros_like(shift), shift), shift.expand(-1, 3, -1))
        h, z = residual_ada_layer_norm(torch.zeros_like(x), x, None, torch.zeros_like(shift), shift)
        assert torch.equal(h, x)
        assert torch.equal(z, shift.expand(-1, 3, -1))
        for shape, form in (((8, 16, 2, 2), torch.contiguous_format), ((2, 16, 3, 3), torch.channels_last)):
            x = torch.full(shape, value, dtype=dtype).contiguous(memory_format=form)
            y = group_norm_silu(x, 4, activation=None)
            assert y.eq(0).all()
            assert y.is_contiguous(memory_format=form)
        assert group_norm_silu(torch.full((8, 16), value, dtype=dtype), 4).eq(0).all()


def test_it_is_said():
    group_norm_silu(hard("1e30", (1, 64, 4, 4)), 4)
    ada_layer_norm(hard("1e30", (1, 3, C)), vectors(1, 1, C), vectors(1, 1, C))
    said = str(fastdiff.explain())
    for name in ("group_norm_silu", "ada_layer_norm"):
        assert any(name in line and "computed again in float64" in line for line in said.splitlines())
