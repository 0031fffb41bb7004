"""Pictures of the bundled models with linear layers in lower precision, against those in float32."""

import functools

import pytest

import fastdiff
from fastdiff.models import bundled
from fastdiff.models.info import PromptInfo
from fastdiff.ops.linear_low import PRECISIONS
from fastdiff.profiling.measures import psnr, rmse

NAMES = [name for name in bundled.names() if name != "emoji-sr-128"]  # which has no linear layer but the time's
SOON = ("emoji-unet-32", "emoji-ldm-64", "emoji-dit-64")
LEAST = {"bf16": 40.0, "int8": 32.0}  # dB


@functools.cache
def model_of(name):
    """A model, and two of its pictures in float32."""
    model = fastdiff.load(name)
    return model, pictures(model)


def pictures(model):
    info = model.info
    words = ["red heart", "grinning cat"] if isinstance(info, PromptInfo) else ["food", "smileys"]
    guided = {} if info.sampling else dict(steps=6, guidance=2.0, uncond=info.condition(None, 2))
    samples = fastdiff.sample(model, (2, *info.shape), seed=3, cond=info.condition(words, 2), **guided)
    return bundled.to_pictures(model, samples)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SOON else pytest.mark.long) for n in NAMES])
def test_pictures_are_those_of_float32(name, precision):
    model, expected = model_of(name)
    fastdiff.optimize(model, precision=precision)
    try:
        found = pictures(model)
    finally:
        fastdiff.restore(model)
    error = rmse(found, expected)
    assert (error > 0).all()  # something was in lower precision
    assert (psnr(error) >= LEAST[precision]).all(), psnr(error)
