"""denoising-diffusion-pytorch's U-Nets: under `optimize`, caching and control; guidance; forced norms in training."""

import pytest
import torch
from conftest import relative_error
from families_lucidrains import DDP, X, normal

import fastdiff
from fastdiff.models.ddp.unet import parallel_part
from fastdiff.models.parts.control import Control


def make(name):
    torch.manual_seed(0)
    build, arguments = DDP[name]
    return build().eval().requires_grad_(False), dict(arguments)


@pytest.mark.parametrize("name", DDP)
def test_optimize_gives_the_same(name):
    model, arguments = make(name)
    expected = model(**arguments)
    fastdiff.optimize(model)
    assert relative_error(model(**arguments), expected) <= 2e-5


@pytest.mark.parametrize("name", DDP)
def test_a_call_that_reuses_runs_the_outer_stages_alone(name):
    """With what lies below taken from a call at the same time, the result is the same; from another, it is not."""
    model, arguments = make(name)
    x, t = arguments.pop("x"), arguments.pop("t")
    expected = model(x, t, **arguments)
    cached = fastdiff.caching.Cached(model, "deep:2")
    assert torch.equal(cached(x, t, **arguments), expected)
    assert relative_error(cached(x, t, **arguments), expected) <= 1e-6
    cached.reset()
    cached(x, t + 1, **arguments)
    assert relative_error(cached(x, t, **arguments), expected) > 1e-5
    assert cached.cache.reused == 2


@pytest.mark.parametrize("name", ["ddp", "ddp-1d", "karras"])
def test_what_is_added_to_the_skips(name):
    model, arguments = make(name)
    expected = model(**arguments)
    zero = torch.zeros(1)
    count = len(model.down) + 1 if name == "karras" else 2 * len(model.down)
    assert torch.equal(model(**arguments, control=Control([zero] * count, zero)), expected)
    for place in range(count):
        skips = [zero] * count
        skips[place] = torch.ones(1)
        assert not torch.allclose(model(**arguments, control=Control(skips)), expected), place
    assert not torch.allclose(model(**arguments, control=Control(None, torch.ones(1))), expected)
    with pytest.raises(ValueError, match=rf"control must have {count} skips"):
        model(**arguments, control=Control([zero]))


def test_classes_that_are_left_out():
    model, arguments = make("ddp-classes")
    none = model(**{**arguments, "y": model.unconditional(3)})
    out = model(**arguments)
    assert torch.equal(out[1], none[1])  # the number after the last class
    assert not torch.allclose(out[0], none[0])
    kept = model(**arguments, keep=torch.tensor([False, True, True]))
    torch.testing.assert_close(kept, torch.cat([none[:1], out[1:]]))
    torch.manual_seed(0)
    assert abs(model.dropped(4000).double().mean() - 0.5) < 0.05


def test_guidance_without_what_lies_along_the_output():
    """As sampling with guidance where all of it is kept; else the update is at right angles to the output."""
    model, arguments = make("ddp-classes")
    cond, none = model(**arguments), model(**{**arguments, "y": model.unconditional(3)})
    plain, null = model.forward_with_cond_scale(**arguments, cond_scale=3.0, remove_parallel_component=False)
    assert torch.equal(null, none)
    torch.testing.assert_close(plain, none + 3.0 * (cond - none))
    guided, _ = model.forward_with_cond_scale(**arguments, cond_scale=3.0)
    share = ((guided - cond).double() * cond).flatten(1).sum(1) / cond.double().square().flatten(1).sum(1)
    assert share.abs().max() < 1e-6
    whole, _ = model.forward_with_cond_scale(**arguments, cond_scale=3.0, keep_parallel_frac=1.0)
    torch.testing.assert_close(whole, plain)
    rescaled, _ = model.forward_with_cond_scale(**arguments, cond_scale=3.0, rescaled_phi=1.0)
    torch.testing.assert_close(rescaled.flatten(1).std(1), cond.flatten(1).std(1))
    x = normal(2, 3)
    torch.testing.assert_close(parallel_part(x, 5 * x), x)


def test_weights_are_kept_at_unit_length_in_training():
    """Karras et al. 2024, Algorithm 1: the result does not depend on their length, and training keeps it."""
    model, arguments = make("karras")
    expected = model(**arguments)
    weight = model.down[0].conv1.weight
    weight *= 3
    torch.testing.assert_close(model(**arguments), expected)
    model.train()(**arguments)
    torch.testing.assert_close(weight.square().mean((1, 2, 3)), torch.ones(len(weight)))


def test_sampling():
    model, _ = make("ddp-classes")
    y = torch.tensor([1, 4])
    x = fastdiff.sample(model, X[:2], schedule="linear", prediction="eps", steps=2, guidance=2.0, cond={"y": y},
                        uncond={"y": model.unconditional(2)})  # fmt: skip
    assert x.isfinite().all()
    assert x.shape == (2, 3, 8, 8)
