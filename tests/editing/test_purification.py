"""DiffPure: it is the forward process and a sampler, takes off what does not belong, and its bad input."""

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.editing import purify, purifying_langevin
from fastdiff.schedules import VPDiscrete, VPLinear
from fastdiff.solvers import get_solver

SCHEDULE = VPLinear()
STEPS = VPDiscrete.linear()
MEAN, STD = 0.5, 0.1


def score(schedule, time_of):
    """Of data N(MEAN, STD^2)."""

    def model(x, t):
        p = schedule.point(time_of(float(t[0])))
        return (p.alpha * MEAN - x) / (p.alpha**2 * STD**2 + p.sigma**2)

    return model


MODEL = score(SCHEDULE, lambda t: t)
X = MEAN + STD * torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
COMMON = dict(schedule=SCHEDULE, prediction="score", seed=3)


def test_it_is_the_forward_process_and_a_sampler():
    times = np.append(0.2 - 0.01 * np.arange(20), 1e-3)
    noisy = fastdiff.diffuse(X, SCHEDULE, 0.2, seed=3)
    expected = fastdiff.sample(MODEL, noisy, solver="euler-maruyama", grid=times, **COMMON)
    assert torch.equal(purify(MODEL, X, 0.2, step=0.01, **COMMON), expected)


def test_training_steps_are_all_taken():
    calls = []
    model = score(STEPS, lambda n: (n + 1) / 1000)

    def counted(x, t):
        calls.append(round(float(t[0])))
        return model(x, t)

    purify(counted, X, 0.03, solver="ddpm", schedule=STEPS, prediction="score", seed=0)
    assert calls == list(range(29, -1, -1))


@pytest.mark.parametrize("solver", ["euler-maruyama", get_solver("euler-maruyama", probability_flow=True)])
def test_what_an_attack_adds_is_taken_off(solver):
    """An attack of ten standard deviations is nearly gone, and the data's law is back; more repetitions help more."""
    attacked = X + 1.0
    found = purify(MODEL, attacked, 0.3, solver=solver, **COMMON)
    twice = purify(MODEL, attacked, 0.3, solver=solver, repeats=2, **COMMON)
    left = [abs(float(each.mean()) - MEAN) for each in (attacked, found, twice)]
    assert left[1] < 0.1 * left[0]
    assert left[2] < left[1] or left[2] < 0.005
    assert abs(float(found.std()) / STD - 1) < 0.1


def test_repetitions_have_noise_of_their_own_at_any_batch_size():
    """Also at the greatest seed, and with one seed a sample."""
    common = {**COMMON, "seed": [2**64 - 1, 7], "solver": "euler-maruyama"}
    twice = purify(MODEL, X[:2], 0.3, repeats=2, **common)
    assert torch.equal(purify(MODEL, X[1:2], 0.3, repeats=2, **{**common, "seed": [7]}), twice[1:])
    once = purify(MODEL, X[:2], 0.3, **common)
    assert not torch.equal(purify(MODEL, once, 0.3, **common), twice)


def test_langevin_stays_near_its_anchor():
    solver = purifying_langevin(sigma2=0.001, lambda_ld=0.01, eta=1.0)
    near = purify(MODEL, X, 0.15, solver=solver, step=0.01, **COMMON)
    assert 0 < float((near - X).abs().max()) < 1.0
    anchored = purify(MODEL, X, 0.15, solver=purifying_langevin(sigma2=1e-4, lambda_ld=0.01, eta=0.0), step=0.01,
                      anchor=X + 1, **COMMON)  # fmt: skip
    assert float((anchored - X).mean()) > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(step=0.0), "step must be positive"),
        (dict(end=0.3), "end below t=0.2"),
        (dict(grid=np.array([0.3, 0.1])), "grid must begin at t=0.2, got 0.3"),
        (dict(repeats=0), "repeats must be a whole number >= 1"),
        (dict(repeats=2, noise=torch.zeros(300, 500, 4)), "noise can be given for one repetition alone"),
        (dict(anchor=X), "anchor is for purifying_langevin"),
        (dict(schedule=STEPS, t=0.0305), "t must be a training step, got 0.0305"),
    ],
)
def test_bad_input(options, message):
    given = {"t": 0.2, **COMMON, **options}
    with pytest.raises(ValueError, match=message):
        purify(MODEL, X, given.pop("t"), **given)


def test_bad_langevin():
    with pytest.raises(ValueError, match="sigma2 and lambda_ld must be positive"):
        purifying_langevin(sigma2=0.0)
