"""linear at the ends of float32's range: infinities and NaN where PyTorch has them, and results that are as exact for
their own size. Sums of bfloat16 terms alone make NaN of an infinity, and 0 of the smallest numbers."""

import math

import pytest
import torch
from operators import assert_no_worse_by_size, needs_matrix_units

import fastdiff
from fastdiff.bench.cases import wide
from fastdiff.bench.cases.linear import make
from fastdiff.ops import linear

needs_matrix_units()
pytestmark = pytest.mark.usefixtures("matrix_units")

# (B, S, K, N): rows packed for all threads and columns, one panel of numbers and more, less than a block.
SIZES = [(1, 40, 200, 70), (2, 150, 96, 33), (1, 40, 1700, 50)]
VALUES = [math.inf, -math.inf, math.nan, 3.4e38, -3.4e38, 1e30, 1e-30, 1e-37, 1e-42, 0.0]
PLACES = ["a number", "a row", "numbers of one row", "many numbers", "a column"]


def check(**inputs):
    with fastdiff.use("cpu"):
        ours = linear(**inputs)
    theirs, oracle = linear.plain(**inputs), linear.plain(**wide(inputs))
    x, weight = inputs["x"].double(), inputs["weight"].double()
    sizes = x.square().sum(-1, True).sqrt() * weight.square().sum(-1).sqrt().nan_to_num(0, 0, 0)
    if inputs.get("glu"):
        sizes = sizes.chunk(2, -1)[0]
    assert_no_worse_by_size(ours, theirs, oracle, sizes.nan_to_num(0, 0, 0), more=math.log2(x.shape[-1]))


def put(t, place, value):
    t = t.clone()
    if place == "a number":
        t[..., 5, 7] = value
    elif place == "numbers of one row":
        t[..., 5, 7::11] = value
        t[..., 5, 8] = -value
    elif place == "many numbers":
        at = torch.rand(t.shape, generator=torch.Generator().manual_seed(1)) < 0.002
        t[at] = value
    elif place == "a row":
        t[..., 5, :] *= value if value else 0
    else:
        t[..., :, 7] *= value if value else 0
    return t


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("of", ["x", "weight"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_some_numbers(size, of, place, value):
    if abs(value) == 3.4e38 and place != "a number":
        pytest.skip("sums that overflow in one order and not in another")
    inputs = make(size, bias=False)
    inputs["weight"] /= 10
    check(**inputs | {of: put(inputs[of], place, value)})


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-36, 1e-30, 1e-20, 1e20, 1e30, 1e36])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_all_numbers(size, scale):
    inputs = make(size, bias=False)
    check(**inputs | dict(x=inputs["x"] * scale))
    check(**inputs | dict(weight=inputs["weight"] * scale))
    root = scale**0.5
    check(**inputs | dict(x=inputs["x"] * root, weight=inputs["weight"] * root))


@pytest.mark.parametrize("value", [math.inf, math.nan, 3.4e38, 1e-37])
def test_what_follows_the_product(value):
    for follows in (
        dict(activation="gelu_tanh"),
        dict(activation="silu", gate=True),
        dict(residual=True),
        dict(glu=True),
    ):
        inputs = make((2, 40, 96, 64), **follows)
        inputs["weight"] /= 10
        check(**inputs | dict(x=put(inputs["x"], "a number", value)))
        check(**inputs | dict(weight=put(inputs["weight"], "a number", value)))


def test_gelu_of_infinities():
    """Its limits. (PyTorch's vectors give NaN for both.)"""
    x = torch.tensor([math.inf, -math.inf, math.nan, 3e38, -3e38])[None, :, None]
    with fastdiff.use("cpu"):
        ours = linear(x, torch.ones(1, 1), activation="gelu").flatten()
    assert ours[[0, 1, 3, 4]].tolist() == [math.inf, 0, x[0, 3, 0].item(), 0]
    assert ours[2].isnan()


def test_several_weights():
    x, weight, *_ = make((2, 70, 80, 96)).values()
    x = put(x, "a number", math.inf)
    weight = put(weight, "a row", 1e-37)
    with fastdiff.use("cpu"):
        assert torch.equal(linear(x, weight.split((32, 48, 16))), linear(x, weight))
    check(x=x, weight=weight)


def test_zeros_stay_zeros():
    """Also -0 and what is cancelled, of which nothing was lost."""
    inputs = make((1, 70, 96, 50), bias=False)
    check(**inputs | dict(x=torch.zeros(1, 70, 96)))
    check(**inputs | dict(weight=torch.zeros(50, 96)))
    check(x=torch.randint(-2, 3, (1, 70, 96)).float(), weight=torch.randint(-2, 3, (50, 96)).float())
