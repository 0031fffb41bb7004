"""Canny edges: where they must be, how wide, and what is refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastdiff.models.edges import canny


def disc(size=64, radius=20.0):
    """Its rim a ramp of one pixel, its middle not at a symmetric place, so that no two pixels are equal."""
    y, x = torch.meshgrid(torch.arange(size) - 31.3, torch.arange(size) - 31.2, indexing="ij")
    return (radius - (x.square() + y.square()).sqrt()).clamp(-0.5, 0.5).mul(2)[None, None], (y, x)


def test_a_disc_has_one_thin_closed_line_at_its_rim():
    picture, (y, x) = disc()
    edges = canny(picture)
    assert edges.shape == (1, 1, 64, 64)
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    on = edges[0, 0] > 0
    assert ((x.square() + y.square()).sqrt()[on] - 20).abs().max() < 1.0
    # Between a line whose diagonal steps are one pixel and one of pixels that share sides.
    assert 4 * 2**0.5 * 20 - 4 <= on.sum() <= 8 * 20
    angle = torch.atan2(y, x)[on].sort().values
    assert (angle[1:] - angle[:-1]).max() < 0.1


@pytest.mark.parametrize("turned", range(4))
def test_edges_are_thin_in_every_direction(turned):
    """A straight step gives one pixel a row; a diagonal one, whose two sides are equal, stairs."""
    step = torch.arange(16).double()
    for values, length in ((step[None].expand(16, 16), 16), (step[None] + step[:, None] - 8, 31)):
        picture = torch.where(values < 8, -0.5, 0.5)[None, None].rot90(turned, (2, 3))
        on = canny(picture)
        assert on.sum() == length
        assert F.avg_pool2d(on, 2, stride=1).max() < 1


def test_weak_lines_are_followed_from_strong_ones_only():
    """A step that fades from left to right is followed below `high`; one that is weak throughout is not there."""
    height = torch.linspace(1, 0.1, 32)[None, :].repeat(32, 1)
    fading = torch.where(torch.arange(32)[:, None] < 16, 0.0, height)[None, None]
    whole, begun = (canny(fading, low=low, high=0.15).sum() for low in (0.03, 0.15))
    assert whole > begun + 5
    weak = torch.where(torch.arange(32)[:, None] < 16, 0.0, 0.3)[None, None].expand(1, 1, 32, 32)
    assert canny(weak, low=0.05, high=0.15).sum() == 0
    assert canny(weak, low=0.05, high=0.08).sum() == 32


def test_colours_that_are_equally_bright_have_an_edge():
    picture = torch.zeros(1, 3, 16, 16)
    picture[:, 0, :, :8], picture[:, 1, :, 8:] = 1.0, 1.0
    assert canny(picture).sum() == 16
    assert canny(torch.zeros(2, 3, 16, 16)).sum() == 0  # and none at the borders
    assert canny(picture.half()).dtype == torch.float16


def test_each_picture_of_a_batch_alone():
    pictures = torch.rand(3, 3, 24, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = canny(pictures)
    assert torch.equal(whole, torch.cat([canny(picture[None]) for picture in pictures]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 8, 8),), r"pictures must be \(B, C, H, W\), got \(3, 8, 8\)"),
        ((torch.zeros(1, 0, 8, 8),), r"pictures must be \(B, C, H, W\)"),
        ((torch.zeros(1, 1, 8, 8), {"low": 0.2, "high": 0.1}), "low and high must be 0 < low <= high, got 0.2 and 0.1"),
        ((torch.zeros(1, 1, 8, 8), {"sigma": 0}), "sigma must be positive, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    picture, options = (*arguments, {})[:2]
    with pytest.raises(ValueError, match=message):
        canny(picture, **options)


def test_no_tensor():
    with pytest.raises(TypeError, match="pictures must be a tensor"):
        canny(np.zeros((1, 1, 8, 8)))
