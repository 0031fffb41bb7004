"""attention with few keys, which has a kernel of its own where there are matrix units: tails of tiles of keys and
channels, views, scales, maps, denominators."""

import math

import pytest
import torch
from conftest import assert_no_worse

import fastdiff
from fastdiff.ops.attention import attention

TYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = [  # (B, H, Sq, Sk, D, Dv)
    *((1, 2, 100, keys, 40, 32) for keys in (5, 8, 9, 13, 16, 17, 24, 31, 32, 33, 48, 49, 64, 77, 80, 96, 112, 128)),
    *((1, 1, 97, 77, channels, 72 - channels % 8) for channels in (31, 32, 33, 40, 41, 48, 49, 63, 64, 80, 96)),
    (2, 3, 128, 77, 64, 1),
    (1, 2, 96, 20, 1, 80),
    (1, 1, 130, 77, 512, 512),
    (1, 20, 96, 77, 160, 160),  # more heads than the second cache holds
]


def make(size, dtype=torch.float32, std=1.0):
    batch, heads, queries, keys, channels, value_channels = size
    generator = torch.Generator().manual_seed(sum(size))
    # (B, S, H, D), as models have it.
    shapes = (queries, heads, channels), (keys, heads, channels), (keys, heads, value_channels)
    q, k, v = (torch.randn(batch, *shape, generator=generator).to(dtype).transpose(1, 2) for shape in shapes)
    return std * q, k, v


def check(q, k, v, scale=None, maps=False):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with fastdiff.use("cpu"):
        ours = attention(q, k, v, scale=scale, return_maps=maps)
    theirs = attention.plain(q, k, v, scale=scale, return_maps=maps)
    oracle = attention.plain(q.double(), k.double(), v.double(), scale=scale, return_maps=maps)
    scores = float((scale * (q.double() @ k.double().transpose(2, 3))).abs().max())
    pairs = zip(ours, theirs, oracle) if maps else [(ours, theirs, oracle)]
    for a, b, c in pairs:
        # A rounding of the result, and float32's of a score and of the sum of the weights.
        floor = torch.finfo(q.dtype).eps + (scores + math.log2(1 + k.shape[2])) * torch.finfo(torch.float32).eps
        assert_no_worse(a, b, c, floor=float(c.abs().max()) * floor)
    return ours


@pytest.mark.parametrize("dtype", TYPES)
def test_tails(isa, dtype):
    for size in SIZES:
        check(*make(size, dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scale", [0.0, -0.2, 3.0])
def test_scales(isa, dtype, scale):
    """With a negative one the largest score is of the smallest product; no key that is not there takes part."""
    q, k, v = make((1, 2, 100, 77, 40, 40), dtype)
    check(q, k, v, scale)
    check(q.abs() + 1, -k.abs() - 1, v, abs(scale))


@pytest.mark.parametrize("std", [30.0, 300.0, 1e-3])
def test_large_and_small_scores(isa, std):
    check(*make((1, 2, 100, 77, 40, 40), std=std))


@pytest.mark.parametrize("dtype", TYPES)
def test_maps_do_not_change_the_result(isa, dtype):
    q, k, v = make((2, 2, 100, 77, 40, 40), dtype)
    y, maps = check(q, k, v, maps=True)
    assert maps.shape == (2, 2, 100, 77)
    with fastdiff.use("cpu"):
        assert torch.equal(y, attention(q, k, v))


def test_denominators(isa):
    """They are what the gradients are computed from."""
    q, k, v = make((2, 2, 100, 77, 40, 40))
    for scale in (0.3, -0.3):
        y, lse, _ = torch.ops.fastdiff.attention(q, k, v, None, scale, False, True)
        expected = (scale * (q.double() @ k.double().transpose(2, 3))).logsumexp(-1)
        assert (lse - expected).abs().max() <= 8 * torch.finfo(torch.float32).eps * expected.abs().max()
        with fastdiff.use("cpu"):
            assert torch.equal(y, attention(q, k, v, scale=scale))


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_nan_goes_where_it_belongs(isa, where):
    q, k, v = make((1, 2, 100, 77, 40, 40))
    dict(q=q, k=k, v=v)[where][0, 1, 7, 3] = float("nan")
    with fastdiff.use("cpu"):
        bad = attention(q, k, v).isnan()
    assert bad.any()
    assert torch.equal(bad, attention.plain(q, k, v).isnan())
