"""Linear layers in bfloat16 and 8-bit integers: every instruction set against float64, by bounds that follow from the
rounding of the factors."""

import math

import pytest
import torch

import fastdiff
from fastdiff.bench.cases.linear import make
from fastdiff.ops import linear, linear_low
from fastdiff.ops.linear import ACTIVATIONS, Arguments
from fastdiff.ops.linear_low import PRECISIONS, low_linear, nbytes, packed
from fastdiff.runtime import choice

# (B, S, K, N): of DiT, of nothing in particular, less than a block of rows or columns, one of all.
SIZES = [(2, 40, 1152, 96), (1, 77, 130, 70), (3, 11, 63, 33), (1, 1, 1, 1), (1, 9, 2, 31), (2, 35, 65, 257)]
BFLOAT16 = 2.0**-8  # of a number, at most, is what rounding to 8 bits takes off or adds
SUMMED = 2.0**-23  # of all terms of a sum, times their number: rounding while they are added up, in any order


def arguments(size, **options):
    """Of a layer, with the weight as a parameter, and all of it in float64."""
    a = linear.arguments(**make(size, **options))
    return a._replace(weight=torch.nn.Parameter(a.weight, requires_grad=False))


def terms(a, of_x, of_w):
    """(B, S, N): what the products may be off by, where each x is off by of_x and each weight by of_w."""
    x, w = a.x.double(), a.weight.double()
    off = of_x @ w.abs().T + x.abs() @ of_w.T + of_x @ of_w.T
    return off + a.x.shape[-1] * SUMMED * (x.abs() + of_x) @ (w.abs() + of_w).T + 1e-30


def bound(a, precision):
    """Of a layer without an epilogue but its bias."""
    x, w = a.x.double().abs(), a.weight.double().abs()
    if precision == "bf16":
        return terms(a, x * BFLOAT16, w * BFLOAT16)
    # Half a step of each row; the scale and its inverse are rounded too.
    step = 0.5 / 127 * (1 + 1e-4)
    return terms(a, (x.amax(-1, keepdim=True) * step).expand_as(x), (w.amax(-1, keepdim=True) * step).expand_as(w))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_each_number_is_within_the_rounding_of_its_factors(isa, precision, size):
    for bias in (True, False):
        a = arguments(size, bias=bias)
        y = low_linear(a, precision, "instructions")
        assert y.dtype is torch.float32
        assert y.is_contiguous()
        off = (y.double() - linear_low.exactly(a)).abs()
        assert bool((off <= bound(a, precision) + 1e-6 * linear_low.exactly(a).abs() + 1e-12).all()), float(off.max())
        if size[2] > 60:  # the bound is not all that holds it: rounding errors have no common sign
            assert float(off.square().mean().sqrt()) < 0.3 * float(bound(a, precision).square().mean().sqrt())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_whole_numbers_are_exact(isa, precision):
    """Those that bfloat16 has, and those of a row whose largest is 127, are not rounded."""
    torch.manual_seed(0)
    largest = 127 if precision == "int8" else 64
    x, w = (torch.randint(-largest, largest + 1, shape).float() for shape in ((2, 37, 200), (50, 200)))
    x[..., 3], w[:, 5] = largest, -largest
    y = low_linear(Arguments(x, torch.nn.Parameter(w, requires_grad=False)), precision, "instructions")
    exact = x.double() @ w.double().T
    if precision == "bf16":
        assert torch.equal(y.double(), exact)
    else:  # the two scales are 1 but for their rounding
        torch.testing.assert_close(y.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_follows_the_products_is_float32(isa, precision, activation):
    """With factors that are not rounded, the layer is as exact as one of float32."""
    torch.manual_seed(0)
    largest = 127 if precision == "int8" else 16
    w = torch.randint(-largest, largest + 1, (100, 48)).float()
    w[:, 0] = largest
    x = torch.randint(-largest, largest + 1, (2, 33, 48)).float() / 2.0 ** (15 if precision == "int8" else 9)
    x[..., 1] = largest / 2.0 ** (15 if precision == "int8" else 9)
    for glu in (False, True):
        outputs = 50 if glu else 100
        for gate in (None, torch.randn(2, 1, outputs), torch.randn(2, 33, outputs)):
            for residual in (None, torch.randn(2, 33, outputs)):
                weight = torch.nn.Parameter(w, requires_grad=False)
                a = Arguments(x, weight, torch.randn(100), gate, residual, activation, glu)
                exact = linear_low.exactly(a)
                off = float((low_linear(a, precision, "instructions").double() - exact).abs().max())
                assert off <= 16 * 2.0**-24 * max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_views(precision):
    a = arguments((2, 24, 80, 48))
    for view in (
        dict(x=torch.randn(24, 2, 80).transpose(0, 1)),
        dict(x=torch.randn(2, 24, 160)[..., ::2]),
        dict(weight=torch.nn.Parameter(torch.randn(48, 100), requires_grad=False)[:, 10:90]),
        dict(weight=torch.nn.Parameter(torch.randn(80, 48), requires_grad=False).T, bias=torch.randn(96)[::2]),
        dict(residual=torch.randn(2, 48, 24).transpose(1, 2)),
    ):
        b = a._replace(**view)
        off = (low_linear(b, precision, "instructions").double() - linear_low.exactly(b)).abs()
        assert bool((off <= bound(b, precision) + 1e-5).all())


def test_pytorchs_products_are_within_one_more_rounding():
    """Which takes its place on AMX: the sums are rounded to bfloat16 as well."""
    a = arguments((2, 40, 192, 96), activation="gelu", gate=True, residual=True)
    plain = a._replace(activation="none", gate=None, residual=None)
    for each in (plain._replace(bias=None), plain):
        exact = linear_low.exactly(each._replace(bias=None))
        allowed = bound(each, "bf16") + (exact.abs() + bound(each, "bf16")) * BFLOAT16 + 1e-6
        assert bool(((low_linear(each, "bf16", "tiles").double() - linear_low.exactly(each)).abs() <= allowed).all())
    off = (low_linear(a, "bf16", "tiles").double() - linear_low.exactly(a)).square().mean().sqrt()
    assert float(off / linear_low.exactly(a).square().mean().sqrt()) < 4 * BFLOAT16


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_of_zeros_and_numbers_that_are_none(isa, precision):
    a = arguments((1, 6, 40, 36), bias=False)
    a.x[0, 0] = 0
    a.x[0, 1, 3] = math.nan
    a.x[0, 2, 4] = math.inf
    a.x[0, 3] *= 1e-38
    a.x[0, 4] *= 1e30
    y = low_linear(a, precision, "instructions")
    assert bool((y[0, 0] == 0).all())
    assert bool(y[0, 1].isnan().all())
    assert not bool(y[0, 2].isfinite().any())
    assert bool((y[0, 3].abs() < 1e-37).all())
    off = (y[0, 4:].double() - linear_low.exactly(a)[0, 4:]).abs()
    assert bool((off <= bound(a, precision)[0, 4:]).all())


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_a_bit(threads):
    a = arguments((2, 150, 96, 200), activation="silu", glu=True)
    before = torch.get_num_threads()
    for precision in PRECISIONS:
        expected = low_linear(a, precision)
        torch.set_num_threads(threads)
        try:
            assert torch.equal(low_linear(a, precision), expected)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize(("precision", "share"), [("bf16", 0.5), ("int8", 0.26)])
def test_a_packed_weight_has_half_or_a_quarter_of_the_bytes(precision, share):
    weight = torch.nn.Parameter(torch.randn(320, 1280), requires_grad=False)
    low_linear(Arguments(torch.randn(1, 2, 1280), weight), precision, "instructions")
    kept = packed(weight, precision, False, "instructions")
    assert kept.nbytes == nbytes((320, 1280), precision) <= share * weight.nbytes


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_changed_weight_is_packed_again(precision):
    weight = torch.nn.Parameter(torch.randn(64, 64), requires_grad=False)
    a = Arguments(torch.randn(1, 5, 64), weight)
    before = low_linear(a, precision)
    assert torch.equal(low_linear(a, precision), before)
    weight.mul_(-1)
    assert torch.equal(low_linear(a, precision), -before)
    weight.data[:, 3] += 10  # a column, unseen by PyTorch
    off = (low_linear(a, precision).double() - linear_low.exactly(a)).abs()
    assert bool((off <= bound(a, precision) + 1e-6).all())


def test_the_reference_computes_in_float32():
    a = arguments((1, 8, 64, 64))
    with fastdiff.use("reference"):
        assert torch.equal(low_linear(a, "int8"), linear.reference(a))
    assert not torch.equal(low_linear(a, "int8"), linear.reference(a))


def test_a_weight_whose_changes_cannot_be_seen_stays_in_float32_and_is_said():
    with torch.inference_mode():
        a = Arguments(torch.randn(1, 8, 64), torch.randn(64, 64))
        assert torch.equal(low_linear(a, "bf16"), linear.reference(a))
    assert any(name == "linear" and "inference tensor" in why for name, why in choice.notes())


def test_nothing_is_computed_of_nothing():
    for shape in ((0, 3, 64), (2, 0, 64)):
        y = low_linear(Arguments(torch.empty(shape), torch.nn.Parameter(torch.randn(40, 64))), "bf16")
        assert y.shape == (*shape[:2], 40)
