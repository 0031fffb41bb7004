"""SR3 and Palette: runs conditioned on a picture and a noise level, and their checkpoints with the schedule beside."""

import dataclasses

import pytest
import torch
from conftest import relative_error
from original_names import layout_of, state_dict
from test_families import make
from test_layouts import PALETTE, SR3

import fastdiff
from fastdiff.models.palette import Palette
from fastdiff.models.sr3 import SR3UNet, step_embedding
from fastdiff.prediction import of_noise_level

SCHEDULE = fastdiff.schedules.VPDiscrete.linear(2000, start=1e-6, end=1e-2)  # of both originals


@torch.no_grad()
@pytest.mark.parametrize(("name", "power"), [("sr3", 1), ("palette", 2)])
def test_ancestral_sampling_as_the_originals_do_it(name, power):
    """Every step of a short schedule, against p_sample written out: x0 clamped, the posterior's mean and deviation."""
    model, call = make(name)
    model = model.double()
    x, image = call["x"].double(), call["image"].double()
    schedule = fastdiff.schedules.VPDiscrete.linear(5, start=0.05, end=0.3)
    draws = torch.randn(5, *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = fastdiff.sample(
        model, x, schedule=schedule, prediction=of_noise_level(power), solver="ddpm", steps=5, noise=draws,
        cond={"image": image}, threshold=1.0,
    )  # fmt: skip
    betas = torch.from_numpy(schedule.betas)
    gammas = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), gammas[:-1]])
    for draw, n in enumerate(reversed(range(5))):
        level = (gammas[n].sqrt() ** power).expand(len(x))
        eps = model(torch.cat([image, x], dim=1), level)
        x0 = ((x - (1 - gammas[n]).sqrt() * eps) / gammas[n].sqrt()).clamp(-1, 1)
        mean = before[n].sqrt() * betas[n] * x0 + (1 - betas[n]).sqrt() * (1 - before[n]) * x
        variance = betas[n] * (1 - before[n]) / (1 - gammas[n])
        x = mean / (1 - gammas[n]) + (variance.sqrt() * draws[draw] if n else 0)
    assert relative_error(found, x) <= 1e-5  # the noise level is float32


@torch.no_grad()
@pytest.mark.parametrize("name", ["sr3", "sr3-ddpm", "palette"])
def test_optimized(name):
    model, call = make(name)
    expected = model(**call)
    fastdiff.optimize(model)
    for _ in range(2):
        assert relative_error(model(**call), expected) <= 2e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["sr3", "palette"])
def test_the_condition_is_the_first_half_and_levels_may_be_a_column(name):
    model, call = make(name)
    whole = torch.cat([call["image"], call["x"]], dim=1)
    assert torch.equal(model(whole, call["t"][:, None]), model(**call))
    same = whole[:1, :3].expand(3, -1, -1, -1)
    assert torch.equal(model(call["x"], call["t"], call["image"][:1]), model(call["x"], call["t"], same))


@pytest.mark.parametrize(("words", "config", "heads", "kind"), [
    ("SR3's U-Net", SR3, {}, SR3UNet), ("Palette's U-Net", PALETTE, {"num_head_channels": 16}, Palette),
])  # fmt: skip
def test_checkpoints_as_their_training_saves_them(words, config, heads, kind):
    """The network below denoise_fn., the schedule's tables beside it; no layout is told."""
    buffers = {"betas": torch.zeros(9), "posterior_log_variance_clipped": torch.zeros(9), "gammas": torch.zeros(9)}
    state = {**state_dict(layout_of(words), config, "denoise_fn."), **buffers}
    model = fastdiff.models.load(state, config=heads)
    assert isinstance(model, kind)
    key = next(key for key in state if key.endswith(("block1.block.0.weight", "in_layers.0.weight")))
    del state[key]
    with pytest.raises(fastdiff.WeightsError, match=f"missing: {key}"):
        fastdiff.models.load(state, layout=layout_of(words).name, config=heads)


def test_the_table_of_steps_is_rounded_as_the_original_rounds_it():
    t = torch.tensor([1999.0])
    exact = step_embedding(t.double(), 64)
    assert (step_embedding(t, 64) - exact).abs().max() <= 2e-3  # float32 at 2000 radians
    assert step_embedding(t, 64).shape == (1, 64)


def test_noise_levels_are_told_to_the_network():
    p = SCHEDULE.point(0.5)
    assert of_noise_level().time(SCHEDULE, p) == p.alpha
    assert of_noise_level(2).time(SCHEDULE, p) == p.alpha**2
    assert of_noise_level(2) is of_noise_level(2)
    assert dataclasses.replace(of_noise_level(), noise_time=None).time(SCHEDULE, p) == SCHEDULE.model_time(0.5)
