"""Reconstruction guidance: what is known is met, and the rest follows from it."""

import pytest
import torch
from conftest import relative_error

import fastdiff
from fastdiff import SamplingError
from fastdiff.editing import reconstruct
from fastdiff.schedules import VPDiscrete

SCHEDULE = VPDiscrete.linear()
COMMON = dict(schedule=SCHEDULE, prediction="eps", seed=0)
# Data whose two entries are equal up to a little: N(0, C).
C = torch.tensor([[1.0, 0.99], [0.99, 1.0]], dtype=torch.float64)
KNOWN = torch.tensor([[1.0, 0.0]] * 64, dtype=torch.float64)
MASK = torch.tensor([1, 0])


def network(x, t):
    p = SCHEDULE.point((float(t[0]) + 1) / 1000)
    covariance = p.alpha**2 * C + p.sigma**2 * torch.eye(2, dtype=torch.float64)
    return p.sigma * x @ torch.linalg.inv(covariance)  # -sigma score


def noise(batch=64):
    return torch.randn(batch, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_rest_follows_what_is_known():
    x = reconstruct(network, noise(), KNOWN, mask=MASK, replace=True, steps=100, weight=4.0, **COMMON)
    assert torch.equal(x[:, 0], KNOWN[:, 0])
    assert abs(float(x[:, 1].mean()) - 0.99) < 0.15  # the exact conditional mean
    alone = reconstruct(network, noise(), KNOWN, mask=MASK, replace=True, steps=100, weight=0.0, **COMMON)
    errors = [(each[:, 1] - 0.99).abs().mean() for each in (x, alone)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun"])
def test_an_operator_is_met_by_any_solver(solver):
    common = dict(operator=lambda x0: x0.mean(1), steps=60, solver=solver, **COMMON)
    target = torch.full((64,), 0.8, dtype=torch.float64)
    guided, free = (reconstruct(network, noise(), target, weight=w, **common).mean(1) for w in (4.0, 0.0))
    assert (guided - 0.8).abs().mean() < 0.5 * (free - 0.8).abs().mean()


def test_without_weight_it_is_sampling():
    x = reconstruct(network, noise(), KNOWN, mask=MASK, weight=0.0, solver="ddim", steps=10, **COMMON)
    assert relative_error(x, fastdiff.sample(network, noise(), solver="ddim", steps=10, **COMMON)) < 1e-10


def refuses(x, t):
    raise AssertionError("the model was called")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either mask or operator"),
        ({"mask": torch.ones(3)}, "must be broadcast"),
        ({"mask": torch.ones(2)}, "nothing to sample"),
        ({"mask": torch.tensor([0.5, 0.0])}, "must hold 0 and 1"),
        ({"operator": lambda x0: x0[:, :1]}, "the operator makes"),
        ({"operator": lambda x0: x0, "replace": True}, "replace needs a mask"),
        ({"mask": MASK, "solver": "rk45"}, "chooses its own steps"),
        ({"mask": MASK, "guidance": 2.0}, "guidance needs uncond"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        reconstruct(refuses, noise(), KNOWN, **{**COMMON, **options})


def test_a_model_without_gradient_is_named():
    with pytest.raises(SamplingError, match="the model has no gradient"):
        reconstruct(lambda x, t: network(x.detach(), t), noise(), KNOWN, mask=MASK, **COMMON)
    with pytest.raises(SamplingError, match="the operator has no gradient"):
        reconstruct(network, noise(), KNOWN, operator=lambda x0: x0.detach(), **COMMON)
