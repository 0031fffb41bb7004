"""Cascades: each stage as `sample` runs it, the small pictures with noise and without, seeds, and what is refused."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fastdiff
from fastdiff import Stage, cascade
from fastdiff.process.grids import make_grid

SCHEDULE = fastdiff.schedules.VPDiscrete.linear()
OPTIONS = dict(schedule=SCHEDULE, prediction="eps", solver="ddim", steps=4)
STD = 0.5  # of the data of `exact`: every pixel normal


def exact(x, t):
    """The noise in x = alpha x0 + sigma eps for x0 of N(0, STD^2)."""
    p = SCHEDULE.point((float(t[0]) + 1) / 1000)
    return p.sigma / (p.alpha**2 * STD**2 + p.sigma**2) * x


class Upsampler:
    """Predicts no noise, and keeps what it was given."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, **cond):
        self.calls.append((x.clone(), t.clone(), cond))
        return 0.1 * x + 0.05 * F.interpolate(cond["low_res"], x.shape[2:])


def base(**options):
    return Stage(exact, (3, 16, 16), **{**OPTIONS, **options})


def test_one_stage_is_sample():
    assert torch.equal(cascade([base()], 2, seed=5), fastdiff.sample(exact, (2, 3, 16, 16), seed=5, **OPTIONS))


@pytest.mark.parametrize("mode", [None, "nearest", "bilinear", "bicubic"])
def test_each_stage_has_its_own_solver_and_steps(mode):
    """By hand: two calls of sample, the second with the first's pictures."""
    model, seen = Upsampler(), []
    second = Stage(model, (3, 32, 32), takes="low_res", enlarge=mode, **{**OPTIONS, "solver": "heun", "steps": 2})
    found = cascade([base(), second], 2, seed=5, on_stage=lambda number, x: seen.append((number, x)))
    small = fastdiff.sample(exact, (2, 3, 16, 16), seed=5, **OPTIONS)
    assert [number for number, _ in seen] == [0, 1]
    assert torch.equal(seen[0][1], small)
    assert torch.equal(seen[1][1], found)
    corners = {} if mode == "nearest" else {"align_corners": False}
    expected = small if mode is None else F.interpolate(small, (32, 32), mode=mode, **corners)
    calls = list(model.calls)
    assert all(torch.equal(cond["low_res"], expected) for _, _, cond in calls)
    again = fastdiff.sample(model, calls[0][0], cond={"low_res": expected}, **{**OPTIONS, "solver": "heun", "steps": 2})
    assert torch.equal(again, found)


def test_noise_of_the_stages_is_independent():
    """The initial states of both stages and the noise between are three draws, at any batch size the same."""
    first, model = [], Upsampler()

    def begins(x, t):
        first.append(x.clone())
        return exact(x, t)

    stages = [Stage(begins, (3, 16, 16), **OPTIONS), Stage(model, (3, 16, 16), takes="low_res", augment=0.5, **OPTIONS)]
    small = []
    cascade(stages, 4, seed=7, on_stage=lambda number, x: small.append(x))
    p = SCHEDULE.point(0.5)
    between = (model.calls[0][2]["low_res"] - p.alpha * small[0]) / p.sigma
    draws = torch.stack([first[0].flatten(), model.calls[0][0].flatten(), between.flatten()]).double()
    n = draws.shape[1]
    assert (draws.mean(1).abs() < 5 / math.sqrt(n)).all()
    assert ((draws.corrcoef() - torch.eye(3)).abs() < 5 / math.sqrt(n)).all()
    assert (draws.std(1) - 1).abs().max() < 5 / math.sqrt(n)
    whole = cascade(stages, 4, seed=7)
    assert torch.equal(cascade(stages, 2, seed=7, first_sample=2), whole[2:])
    alone = cascade(stages, 2, seed=[7, 8])
    assert torch.equal(alone[:1], whole[:1])
    assert not torch.equal(alone[1], whole[1])
    assert not torch.equal(cascade(stages, 1), cascade(stages, 1))


@pytest.mark.parametrize("truncated", [False, True])
def test_the_noisy_pictures_have_the_marginal_of_their_time(truncated):
    """Truncated or not, for a model that is exact: the standard deviation at the time (Ho et al. 2021, Section 4.2)."""
    model = Upsampler()
    stage = Stage(model, (3, 64, 64), takes="low_res", augment=0.3, truncated=truncated, **OPTIONS)
    cascade([Stage(exact, (3, 64, 64), **{**OPTIONS, "steps": 40}), stage], 4, seed=1)
    p = SCHEDULE.point(0.3)
    noisy = model.calls[0][2]["low_res"]
    expected = math.sqrt(p.alpha**2 * STD**2 + p.sigma**2)
    assert abs(float(noisy.std()) / expected - 1) < 0.03


def test_truncated_stops_the_stage_before():
    """At the time, and not at a point of the grid: the steps below it are saved."""
    times = []

    def counted(x, t):
        times.append(float(t[0]))
        return exact(x, t)

    options = {**OPTIONS, "steps": 10, "grid": "uniform"}
    second = Stage(Upsampler(), (3, 16, 16), takes="low_res", augment=0.45, truncated=True, **OPTIONS)
    small = []
    cascade([Stage(counted, (3, 8, 8), **options), second], 1, seed=0, on_stage=lambda number, x: small.append(x))
    grid = make_grid("uniform", SCHEDULE, 10)
    assert len(times) == (grid > 0.45).sum()
    assert min(times) > 449
    cut = np.array([*grid[grid > 0.45], 0.45])
    assert torch.equal(small[0], fastdiff.sample(exact, (1, 3, 8, 8), seed=0, **{**options, "grid": cut}))


def test_the_level_is_told_and_both_halves_of_guidance_see_the_pictures():
    model = Upsampler()
    given = dict(cond={"y": torch.ones(2)}, uncond={"y": torch.zeros(2)}, guidance=2.0)
    common = dict(takes="low_res", augment=0.5, level="noise_level", **OPTIONS, **given)
    cascade([base(), Stage(model, (3, 32, 32), **common)], 2, seed=0)
    _, t, cond = model.calls[0]
    assert len(t) == 4
    assert torch.equal(cond["noise_level"], torch.full((4,), 499.0))
    assert torch.equal(cond["low_res"][:2], cond["low_res"][2:])
    assert torch.equal(cond["y"], torch.tensor([1.0, 1, 0, 0]))
    other = Upsampler()
    edm = fastdiff.schedules.VPDiscrete.cosine()
    stage = Stage(other, (3, 32, 32), level_of=lambda p: 2 * p.lam, augment_schedule=edm, enlarge="nearest",
                  enlarge_first=True, **common)  # fmt: skip
    small = []
    cascade([base(), stage], 2, seed=0, on_stage=lambda number, x: small.append(x))
    cond = other.calls[0][2]
    p = edm.point(0.5)
    torch.testing.assert_close(cond["noise_level"], torch.full((4,), 2 * p.lam))
    eps = (cond["low_res"][:2] - p.alpha * F.interpolate(small[0], (32, 32))) / p.sigma
    assert abs(float(eps.std()) - 1) < 0.05
    assert (eps[..., ::2] - eps[..., 1::2]).abs().mean() > 0.5  # pixels of their own: noise after enlarging


def test_a_network_of_ours():
    """ADM's super-resolution, which enlarges by itself, in float64."""
    from fastdiff.models.adm import ADMConfig, ADMSuperResolution

    torch.manual_seed(0)
    config = ADMConfig(in_channels=3, model_channels=32, out_channels=3, num_res_blocks=1, attention_resolutions=(),
                       channel_mult=(1,))  # fmt: skip
    model = ADMSuperResolution(config).double()
    x = cascade([base(), Stage(model, (3, 32, 32), takes="low_res", **OPTIONS)], 1, seed=0)
    assert x.shape == (1, 3, 32, 32)
    assert x.dtype is torch.float64


def test_what_is_refused():
    model = Upsampler()
    with pytest.raises(ValueError, match="unknown option of a stage 'step'; did you mean 'steps'"):
        base(step=3)
    with pytest.raises(ValueError, match="unknown option of a stage 'seed'"):
        base(seed=3)
    with pytest.raises(ValueError, match="unknown enlarge 'bicubik'; did you mean 'bicubic'"):
        base(enlarge="bicubik")
    with pytest.raises(ValueError, match="truncated needs augment"):
        base(truncated=True)
    with pytest.raises(ValueError, match="level needs augment"):
        base(level="s")
    with pytest.raises(ValueError, match="augment_schedule and enlarge_first have no use"):
        base(truncated=True, augment=0.5, enlarge_first=True)
    with pytest.raises(ValueError, match="at least one"):
        cascade([], 1)
    with pytest.raises(TypeError, match=r"stages\[0\] must be a fastdiff.Stage, got function"):
        cascade([exact], 1)
    with pytest.raises(ValueError, match=r"stages\[0\] must not say what it takes"):
        cascade([base(takes="x")], 1)
    with pytest.raises(ValueError, match=r"stages\[1\] must say what it takes"):
        cascade([base(), base()], 1)
    with pytest.raises(ValueError, match=r"augment must lie within the grid of the stage before, \(0, 1\), got 1.5"):
        cascade([base(), Stage(model, (3, 32, 32), takes="low_res", augment=1.5, truncated=True, **OPTIONS)], 1)
    with pytest.raises(ValueError, match="batch"):
        cascade([base()], 0)
