"""The bundled models with `optimize(reuse=)`: the pictures of `Cached` with the same cut, guided."""

import pytest
import torch

import fastdiff
from fastdiff.caching import Cached
from fastdiff.compiler.branches import branches_of


@pytest.mark.parametrize(
    ("name", "rule"), [("emoji-unet-32", "deep:3"), ("emoji-ldm-64", "deep:2@2"), ("emoji-dit-64", "blocks:2")]
)
def test_the_pictures_are_those_of_cached(name, rule):
    model = fastdiff.load(name)
    info = model.info
    conditions = dict(cond=info.condition((info.classes or ["a cat"])[0], 1), uncond=info.condition(None, 1))

    def sample(network):
        return fastdiff.sample(
            network, (1, *info.shape), schedule=info.schedule, prediction=info.prediction, solver="ddim", steps=4,
            guidance=2.0, seed=0, **conditions,
        )  # fmt: skip

    exact, cached = sample(model), Cached(model, rule)
    expected = sample(cached)
    fastdiff.optimize(model, reuse=rule)
    found = sample(model)
    assert branches_of(model)[0].reused == cached.cache.reused == 2
    error = (found - expected).square().mean().sqrt()
    assert error <= 1e-4 * expected.square().mean().sqrt()
    assert (exact - expected).square().mean().sqrt() > 20 * error
    assert torch.isfinite(found).all()
