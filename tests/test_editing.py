"""Starting from an image: diffuse, partial starts, encode."""

import numpy as np
import pytest
import torch
from conftest import relative_error
from gaussian import Gaussian, states

import fastdiff
from fastdiff import sample
from fastdiff.grids import make_grid
from fastdiff.schedules import VPDiscrete
from fastdiff.solvers import get_solver

SCHEDULE = VPDiscrete.linear()
DATA = Gaussian(SCHEDULE)
MODEL = DATA.network("eps", lambda n: (n + 1) / 1000)
COMMON = dict(schedule=SCHEDULE, prediction="eps", grid="uniform")


def test_diffuse_is_the_forward_process():
    x0 = DATA.mean + DATA.std * torch.randn(4000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = fastdiff.diffuse(x0, SCHEDULE, 0.4, seed=3)
    p = SCHEDULE.point(0.4)
    eps = (x - p.alpha * x0) / p.sigma
    assert abs(eps.mean()) < 5 / 16000**0.5
    assert abs(eps.std() - 1) < 5 / 32000**0.5
    assert torch.equal(x[:2], fastdiff.diffuse(x0[:2], SCHEDULE, 0.4, seed=3))
    assert fastdiff.diffuse(x0.bfloat16(), SCHEDULE, 0.4, seed=3).dtype == torch.bfloat16


def test_a_partial_start_runs_the_rest_of_the_grid():
    """SDEdit: from t = 0.4, the model is called at 0.4 and at the grid's times below it, and the data come out."""
    DATA.calls.clear()
    x0 = DATA.mean + DATA.std * states(batch=4000)
    x = sample(MODEL, fastdiff.diffuse(x0, SCHEDULE, 0.4, seed=0), start=0.4, steps=200, solver="heun", **COMMON)
    assert DATA.calls[0] == pytest.approx(0.4)
    times = make_grid("uniform", SCHEDULE, 200)
    assert len(set(DATA.calls)) == 1 + np.count_nonzero((times > 0) & (times < 0.4))
    assert abs(float(x.mean()) - DATA.mean) < 0.01
    assert abs(float(x.std()) / DATA.std - 1) < 0.02
    assert float(torch.corrcoef(torch.stack([x.flatten(), x0.flatten()]))[0, 1]) > 0.1  # the image is not forgotten


@pytest.mark.parametrize("start", [0.0, 1.5, -0.1])
def test_start_outside_of_the_grid(start):
    with pytest.raises(ValueError, match="start must lie within the grid"):
        sample(MODEL, states(), start=start, **COMMON)


def test_start_needs_a_state():
    with pytest.raises(ValueError, match="start needs x_init"):
        sample(MODEL, (2, 4), start=0.5, **COMMON)


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_encode_is_the_way_back(solver):
    """The closed form of the ODE gives the noise; sampling from it gives the image again."""
    x0 = DATA.mean + DATA.std * states()
    errors, returns = {}, {}
    for steps in (100, 400):
        x = fastdiff.encode(MODEL, x0, solver=solver, steps=steps, **COMMON)
        errors[steps] = relative_error(x, DATA.exact(x0, SCHEDULE.t_min, 1.0))
        again = sample(MODEL, x, solver=solver, steps=steps, **COMMON)
        returns[steps] = relative_error(again, x0)
    assert errors[400] < errors[100] / 2.5 < 0.1
    assert returns[400] < 0.05  # what is left is the last step, from t_min to the data, which has no way back


def test_encode_part_of_the_way():
    x0 = DATA.mean + DATA.std * states()
    x = fastdiff.encode(
        MODEL, x0, solver="heun", steps=500, to=0.5, schedule=SCHEDULE, prediction="eps", grid="trailing"
    )
    assert relative_error(x, DATA.exact(x0, 0.002, 0.5)) < 1e-3


def test_encode_refuses_noise_and_empty_grids():
    with pytest.raises(ValueError, match="'ddpm' draws noise"):
        fastdiff.encode(MODEL, states(), solver="ddpm", **COMMON)
    with pytest.raises(ValueError, match="draws noise"):
        fastdiff.encode(MODEL, states(), solver=get_solver("ddim", eta=0.5), **COMMON)
    with pytest.raises(ValueError, match="two times of the grid"):
        fastdiff.encode(MODEL, states(), to=0.001, **COMMON)
