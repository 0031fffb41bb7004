"""attention at the ends of float32's range: infinities and NaN where PyTorch has them, and scores far beyond those
that an exponential can tell apart."""

import math

import pytest
import torch
from conftest import assert_no_worse, floor

import fastdiff
from fastdiff.bench.cases import wide
from fastdiff.ops import attention

# (D, keys): of vectors, of few keys on AMX and of many, with and without a rest of channels.
SIZES = [(8, 40), (40, 100), (64, 200), (24, 150), (40, 600)]


def make(size):
    channels, keys = size
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    return dict(q=draw(1, 2, 130, channels), k=draw(1, 2, keys, channels), v=draw(1, 2, keys, channels))


def check(inputs):
    with fastdiff.use("cpu"):
        ours = attention(**inputs)
    theirs, oracle = attention.plain(**inputs), attention.plain(**wide(inputs))
    assert torch.equal(ours.isnan(), theirs.isnan())
    infinite = theirs.isinf()
    assert torch.equal(ours.isinf(), infinite)
    assert torch.equal(ours[infinite], theirs[infinite])
    finite = theirs.isfinite()
    if finite.any():
        allowed = floor(oracle[finite], torch.float32, inputs["k"].shape[2])
        assert_no_worse(ours[finite], theirs[finite], oracle[finite], floor=allowed)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_what_is_not_finite(isa, size, name, value):
    for place in ((0, 1, 5, 3), (0, 0, 7), (0, 1)):
        inputs = make(size)
        inputs[name][place] = value
        check(inputs)


@pytest.mark.parametrize("scale", [1e5, 1e8, 1e10, 1e12, 1e16, 1e19, 1e30])
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_large_numbers(isa, size, name, scale):
    """The largest score is then all of the softmax."""
    inputs = make(size)
    inputs[name] *= scale
    check(inputs)
