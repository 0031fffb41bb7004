"""conv2d where pixels differ much in size: results are held to PyTorch's error at results of their own size. Winograd's
algorithm alone errs by the largest number of a patch, and makes all of it NaN for an infinity."""

import math

import pytest
import torch
from operators import assert_no_worse_by_size, check_threads, run_conv2d

import fastdiff
from fastdiff.bench.cases import wide
from fastdiff.bench.cases.conv2d import make
from fastdiff.ops import conv2d
from fastdiff.ops.conv2d_weights import packed
from fastdiff.runtime import choice

INFINITY, NAN, LARGEST = math.inf, math.nan, 3e38


def check(algorithm=None, more=0, **inputs):
    """more: roundings beside one in each halving of the sum."""
    ours, theirs, oracle = run_conv2d(algorithm, **inputs), conv2d.plain(**inputs), conv2d.plain(**wide(inputs))
    x, weight = inputs["x"], inputs["weight"]
    if not isinstance(x, torch.Tensor):
        x = torch.cat(x, 1)
    squares = conv2d.plain(x.double().square().sum(1, True), torch.ones(1, 1, 3, 3).double(),
                           padding=inputs.get("padding", 1), upsample=inputs.get("upsample", 1))  # fmt: skip
    sizes = squares.sqrt() * weight[weight.isfinite()].abs().max().double()
    assert_no_worse_by_size(ours, theirs, oracle, sizes, more=math.log2(9 * weight.shape[1]) + more)


def outliers(x, how, value):
    """x with the value, its signs kept where it is finite, at some places."""
    at = torch.zeros(x.shape, dtype=torch.bool)
    height, width = x.shape[2:]
    if how == "a pixel":
        at[0, :, height // 2, width // 2] = True
    elif how == "a number":
        at[0, 3, height // 2, width // 2] = True
    elif how == "two numbers":
        at[0, 3, 5, 6] = at[0, 9, 7, 4] = True
    elif how == "a corner":
        at[-1, 1, 0, 0] = at[-1, 1, -1, -1] = True
    elif how == "many numbers":
        at = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.001
    elif how == "many pixels":
        at[:] = torch.rand(x[:, :1].shape, generator=torch.Generator().manual_seed(1)) < 0.05
    elif how == "half of the picture":
        at[..., : width // 2] = True
    elif how == "half of a channel":
        at[:, 5, height // 2 :] = True
    elif how == "all but a window":
        at[:] = True
        at[:, :, 4:8, 3:7] = False
    elif how == "a channel":
        at[:, 5] = True
    assert at.any()
    large = torch.where(x < 0, -value, value) if math.isfinite(value) else torch.full_like(x, value)
    return torch.where(at, large * (x.abs() if how == "a channel" else 1), x)


PLACES = [
    "a pixel", "a number", "two numbers", "a corner", "many numbers", "many pixels", "half of the picture",
    "half of a channel", "all but a window", "a channel",
]  # fmt: skip
# Of tiles that are transformed for all threads at once, and of blocks of them.
SHAPES = [(1, 320, 13, 11), (3, 192, 24, 30)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", [1e2, 1e3, 1e5, 1e6, 1e-6, 0.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outliers(algorithm, shape, value, place):
    """Where few numbers are all of a result PyTorch sums those, and the algorithm the products of 36 points. A number
    of 100 makes a pixel less than eight times as large as others."""
    inputs = make(shape, 40)
    more = 36 if "channel" in place or place == "many numbers" or value == 1e2 else 0
    check(algorithm, more, **inputs | dict(x=outliers(inputs["x"], place, value), bias=None))


@pytest.mark.parametrize("place", [place for place in PLACES if "channel" not in place])
@pytest.mark.parametrize("value", [INFINITY, -INFINITY, NAN, 1e20, 1e-37, 1e-42])
def test_ends_of_float32(algorithm, place, value):
    for shape in SHAPES:
        inputs = make(shape, 40)
        check(algorithm, **inputs | dict(x=outliers(inputs["x"], place, value), bias=None))
        if place in ("a number", "a corner"):  # of more, sums overflow in one order and not in another
            check(algorithm, **inputs | dict(x=outliers(inputs["x"], place, LARGEST), bias=None))


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30, 1e37])
def test_all_numbers_are_large_or_small(algorithm, scale):
    inputs = make(SHAPES[0], 40) | {"bias": None}
    check(algorithm, **inputs | dict(x=inputs["x"] * scale))
    check(algorithm, **inputs | dict(weight=inputs["weight"] * scale))
    some = inputs["weight"].clone()
    some[3] *= scale
    check(algorithm, **inputs | dict(weight=some))


@pytest.mark.parametrize("value", [1e3, 1e6, INFINITY, -INFINITY, NAN, LARGEST, 1e20])
@pytest.mark.parametrize("place", ["a number", "a filter", "a channel"])
def test_weights(algorithm, value, place):
    """As `test_outliers` of a channel."""
    inputs = make(SHAPES[0], 40) | {"bias": None}
    weight = inputs["weight"].clone()
    if place == "a number":
        weight[3, 5, 1, 2] = value
    elif place == "a filter":
        weight[3, 5] = value
    else:
        weight[:, 5] = value
    ours, theirs = run_conv2d(algorithm, **inputs | dict(weight=weight)), conv2d.plain(**inputs | dict(weight=weight))
    oracle = conv2d.plain(**wide(inputs | dict(weight=weight)))
    largest = weight.double().square().sum((1, 2, 3)).sqrt()[:, None, None]  # of an output channel
    largest = torch.where(largest.isfinite(), largest, 1.0)
    assert_no_worse_by_size(ours, theirs, oracle, largest, more=math.log2(9 * weight.shape[1]) + 36)


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("upsample", [1, 2])
@pytest.mark.parametrize("shape", [(2, 69, 9, 10), (1, 20, 5, 6), (1, 130, 3, 18)], ids=str)
def test_what_surrounds_a_convolution(algorithm, shape, padding, upsample):
    inputs = make(shape, 35, upsample=upsample) | {"padding": padding}
    inputs["x"] = outliers(inputs["x"], "many pixels", 1e5)
    check(algorithm, **inputs)
    y = conv2d.plain(**inputs)
    more = dict(residual=torch.randn(y.shape), channel_bias=torch.randn(y.shape[:2]), activation="silu", scale=0.7)
    check(algorithm, **inputs | more)


def test_concatenated(algorithm):
    x, weight, *_ = make((2, 48, 9, 8), 40, seed=1).values()
    skip, more, *_ = make((2, 21, 9, 8), 40, seed=2).values()
    weight = torch.cat((weight, more), 1)
    for value in (1e5, INFINITY):
        check(algorithm, x=[outliers(x, "a number", value), skip], weight=weight)
        check(algorithm, x=[x, outliers(skip, "a corner", value)], weight=weight)


@pytest.mark.parametrize("channels_last", [False, True])
def test_weights_are_read_as_they_are_stored(algorithm, channels_last):
    x, weight, bias, *_ = make((2, 50, 9, 8), 35).values()
    x = outliers(x, "many pixels", 1e5)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    for stored in (weight.contiguous(memory_format=memory), weight.transpose(2, 3).contiguous().transpose(2, 3)):
        check(algorithm, x=x, weight=stored, bias=bias)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_number_of_threads_changes_nothing(algorithm, shape):
    inputs = make(shape, 70)
    inputs["x"] = outliers(inputs["x"], "many pixels", 1e5)
    check_threads(lambda: run_conv2d(algorithm, **inputs), (1, 2, 3, 7))


def test_a_changed_weight_is_seen(algorithm):
    inputs = make((1, 64, 8, 8), 40) | {"bias": None}
    inputs["x"] = outliers(inputs["x"], "a pixel", 1e5)
    run_conv2d(algorithm, **inputs)
    inputs["weight"].mul_(3)
    check(algorithm, **inputs)
    inputs["weight"][0, 0, 0, 0] = INFINITY
    check(algorithm, **inputs)
    inputs["weight"][0, 0, 0, 0] = 1
    assert packed(inputs["weight"]).in_range
    check(algorithm, **inputs)


def test_what_the_weight_cannot_is_said(isa):
    inputs = make((1, 64, 8, 8), 64)
    inputs["weight"][0] = INFINITY
    with fastdiff.use("cpu"):
        conv2d(**inputs)
    assert any(op == "conv2d" and "2^50" in reason for op, reason in choice.notes())
