"""attention with few keys, which has a kernel of its own where there are matrix units: tails of tiles of keys and
channels, views, scales, maps, denominators."""

import functools

import pytest
import torch
from conftest import floor
from operators import TYPES, check_results

import fastdiff
from fastdiff.bench.cases.attention import make as make_in_any_layout
from fastdiff.ops import attention

make = functools.partial(make_in_any_layout, transposed=True)
SIZES = [  # (B, H, Sq, Sk, D), Dv
    *(((1, 2, 100, keys, 40), 32) for keys in (5, 8, 9, 13, 16, 17, 24, 31, 32, 33, 48, 49, 64, 77, 80, 96, 112, 128)),
    *(((1, 1, 97, 77, channels), 72 - channels % 8) for channels in (31, 32, 33, 40, 41, 48, 49, 63, 64, 80, 96)),
    ((2, 3, 128, 77, 64), 1),
    ((1, 2, 96, 20, 1), 80),
    ((1, 1, 130, 77, 512), 512),
    ((1, 20, 96, 77, 160), 160),  # more heads than the second cache holds
]


def check(q, k, v, scale=None, maps=False):
    """The sums are of weights, which are as exact as the largest score."""
    inputs = dict(q=q, k=k, v=v, scale=q.shape[-1] ** -0.5 if scale is None else scale, return_maps=maps)
    scores = inputs["scale"] * (q.double() @ k.double().transpose(2, 3))
    return check_results(attention, inputs, terms=1 + k.shape[2], more=float(scores.abs().max()))


@pytest.mark.parametrize("dtype", TYPES)
def test_tails(isa, dtype):
    for size, value_channels in SIZES:
        check(**make(size, dtype, value_channels=value_channels, seed=sum(size)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scale", [0.0, -0.2, 3.0])
def test_scales(isa, dtype, scale):
    """With a negative one the largest score is of the smallest product; no key that is not there takes part."""
    q, k, v = make((1, 2, 100, 77, 40), dtype).values()
    check(q, k, v, scale)
    check(q.abs() + 1, -k.abs() - 1, v, abs(scale))


@pytest.mark.parametrize("std", [30.0, 300.0, 1e-3])
def test_large_and_small_scores(isa, std):
    check(**make((1, 2, 100, 77, 40), std=std))


@pytest.mark.parametrize("dtype", TYPES)
def test_maps_do_not_change_the_result(isa, dtype):
    q, k, v = make((2, 2, 100, 77, 40), dtype).values()
    y, maps = check(q, k, v, maps=True)
    assert maps.shape == (2, 2, 100, 77)
    with fastdiff.use("cpu"):
        assert torch.equal(y, attention(q, k, v))


def test_denominators(isa):
    """They are what the gradients are computed from."""
    q, k, v = make((2, 2, 100, 77, 40)).values()
    for scale in (0.3, -0.3):
        y, lse, _ = torch.ops.fastdiff.attention(q, k, v, None, scale, False, True)
        expected = (scale * (q.double() @ k.double().transpose(2, 3))).logsumexp(-1)
        assert (lse - expected).abs().max() <= floor(expected, torch.float32, terms=77, more=4)
        with fastdiff.use("cpu"):
            assert torch.equal(y, attention(q, k, v, scale=scale))


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_nan_goes_where_it_belongs(isa, where):
    q, k, v = make((1, 2, 100, 77, 40)).values()
    dict(q=q, k=k, v=v)[where][0, 1, 7, 3] = float("nan")
    with fastdiff.use("cpu"):
        bad = attention(q, k, v).isnan()
    assert bad.any()
    assert torch.equal(bad, attention.plain(q, k, v).isnan())
