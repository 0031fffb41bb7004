"""TimeGrad, Decision Diffuser and the music transformer: under `optimize`, energies, what is left out, sampling."""

import pytest
import torch
from conftest import relative_error
from families_other_data import OTHER_DATA, PLAN, RETURNS, TEMPORAL, T

import fastdiff
from fastdiff.models.parts.control import Control
from fastdiff.models.temporal_unet import TemporalUnet, TemporalUnetConfig
from fastdiff.models.timegrad import step_embedding


def make(name):
    torch.manual_seed(0)
    build, arguments = OTHER_DATA[name]
    model = build()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False), dict(arguments)


def energy(dtype=torch.float32):
    torch.manual_seed(0)
    return TemporalUnet(TemporalUnetConfig(**TEMPORAL, returns_condition=True, calc_energy=True)).to(dtype)


@pytest.mark.parametrize("name", OTHER_DATA)
def test_optimize_gives_the_same(name):
    model, arguments = make(name)
    expected = model(**arguments)
    fastdiff.optimize(model)
    assert relative_error(model(**arguments), expected) <= 2e-5


def test_the_result_is_the_gradient_of_the_energy():
    """Against differences of the energy, which is the same network's without calc_energy, but for SiLU."""
    model, x, t, returns = energy(torch.float64), PLAN.double(), T.double(), RETURNS.double()
    found = model(x, t, returns)
    plain = energy(torch.float64)
    object.__setattr__(plain.config, "calc_energy", False)
    direction, step = torch.randn_like(x), 1e-5

    def value(x):
        return (plain(x, t, returns) - x).square().mean()

    slope = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
    torch.testing.assert_close((found * direction).sum(), slope, rtol=1e-7, atol=0)


def test_an_energy_can_be_trained_and_sampled():
    """A gradient of the gradient reaches every weight; inside inference mode there is one, too."""
    model = energy()
    found = model(PLAN, T, RETURNS)
    found.square().mean().backward()
    without = {"conv_out.bias"}  # no number of the result depends on what shifts all of them
    assert {name for name, p in model.named_parameters() if p.grad is None} <= without
    with torch.inference_mode():
        inside = model(PLAN.clone(), T.clone(), RETURNS.clone())
    torch.testing.assert_close(inside, found)
    with torch.no_grad():
        assert not model(PLAN, T, RETURNS).requires_grad
    fastdiff.optimize(model.eval().requires_grad_(False))
    with pytest.warns(UserWarning, match="as it was written"), torch.no_grad():  # a gradient is part of the network
        optimized = model(PLAN, T, RETURNS)
    assert relative_error(optimized, found.detach()) <= 2e-5


def test_returns_that_are_left_out():
    model, arguments = make("temporal")
    x, t = arguments["x"], arguments["t"]
    none, out = model(x, t), model(**arguments)
    torch.testing.assert_close(out[1], none[1])
    assert not torch.allclose(out[0], none[0])
    torch.manual_seed(0)
    assert abs(model.dropped(4000).double().mean() - 0.9) < 0.03


def test_caching_and_control_of_the_temporal_network():
    model, arguments = make("temporal-plain")
    expected, (x, t) = model(**arguments), (PLAN, T)
    cached = fastdiff.caching.Cached(model, "deep:2")
    assert torch.equal(cached(x, t), expected)
    assert relative_error(cached(x, t), expected) <= 1e-6
    cached.reset()
    cached(x, t + 1)
    assert relative_error(cached(x, t), expected) > 1e-5
    zero = torch.zeros(1)
    assert torch.equal(model(x, t, control=Control([zero] * 3, zero)), expected)
    assert not torch.allclose(model(x, t, control=Control([zero, torch.ones(1), zero])), expected)
    with pytest.raises(ValueError, match="control must have 3 skips"):
        model(x, t, control=Control([zero]))


def test_the_table_of_steps_is_rounded_as_the_original_rounds_it():
    """Angles of 10^6 in float32: in float64 the sines would be others."""
    found = step_embedding(torch.tensor([499.0, 500.0, 7.5]), 16)
    assert found.dtype is torch.float32
    steps = torch.arange(500)[:, None] * 10.0 ** (torch.arange(16)[None] * 4.0 / 16)
    table = torch.cat([steps.sin(), steps.cos()], dim=1)
    assert torch.equal(found, table[[499, 499, 7]])
    exact = (499 * 10.0 ** (torch.arange(16, dtype=torch.float64) / 4)).sin()
    assert (found[0, :16] - exact).abs().max() > 1e-3


@pytest.mark.parametrize("name", OTHER_DATA)
def test_sampling(name):
    model, arguments = make(name)
    x, _ = arguments.pop("x"), arguments.pop("t")
    prediction = fastdiff.prediction.of_noise_level() if name == "music" else "eps"
    arguments.pop("keep", None)
    out = fastdiff.sample(model, x, schedule="linear", prediction=prediction, steps=2, cond=arguments)
    assert out.shape == x.shape
    assert out.isfinite().all()
