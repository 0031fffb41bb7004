"""Analytic-DPM: with the exact model of Gaussian data its variance is exact, so that any number of steps gives the
data."""

import pytest
import torch
from gaussian import Gaussian

from fastdiff import sample
from fastdiff.schedules import VPDiscrete
from fastdiff.solvers import get_solver
from fastdiff.solvers.analytic_dpm import estimate_eps_square

SCHEDULE = VPDiscrete.linear()
DATA = Gaussian(SCHEDULE)
TIMES = [0.9, 0.6, 0.35, 0.15, 0.05]


def exact_eps_square(t):
    """eps is normal with variance sigma^2 / (alpha^2 std^2 + sigma^2)."""
    return (SCHEDULE.point(t).sigma / DATA.marginal_std(t)) ** 2


def final_std(solver, split=None):
    """Of the state at the last time, from many independent values, over the exact one."""
    exact = DATA.network("eps", lambda n: (n + 1) / 1000)

    def model(x, t):
        out = exact(x, t)
        return out if split is None else torch.cat([out, split(out, (float(t[0]) + 1) / 1000)], 1)

    x = DATA.exact(torch.randn(100_000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 1.0, 0.9)
    x = (x - x.mean()) / x.std() * DATA.marginal_std(0.9) + SCHEDULE.point(0.9).alpha * DATA.mean
    prediction = "eps" if split is None else "eps+variance"
    out = sample(model, x, schedule=SCHEDULE, prediction=prediction, solver=solver, grid=TIMES, seed=1)
    return float(out.std()) / DATA.marginal_std(TIMES[-1])


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_variance_is_exact_in_few_steps(eta):
    table = [(t, exact_eps_square(t)) for t in TIMES]
    assert final_std(get_solver("analytic-dpm", eta=eta, eps_square=table)) == pytest.approx(1, abs=0.005)
    assert abs(final_std(get_solver("analytic-dpm", eta=eta)) - 1) > 0.05  # not so without what it knows


@pytest.mark.parametrize("covariance", ["sn", "npr"])
def test_a_learned_covariance_is_as_good(covariance):
    def split(eps, t):
        uncertainty = 1 - exact_eps_square(t)
        return uncertainty + (eps.square() if covariance == "sn" else torch.zeros_like(eps))

    assert final_std(get_solver("analytic-dpm", covariance=covariance), split) == pytest.approx(1, abs=0.005)


def test_estimated_norms():
    data = DATA.mean + DATA.std * torch.randn(
        20_000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    model = DATA.network("v", lambda n: (n + 1) / 1000)
    table = estimate_eps_square(model, data, schedule=SCHEDULE, prediction="v", times=TIMES)
    assert [t for t, _ in table] == TIMES
    for t, value in table:
        assert value == pytest.approx(exact_eps_square(t), rel=0.02)


def test_unknown_covariance():
    with pytest.raises(ValueError, match="unknown covariance 'full'"):
        final_std(get_solver("analytic-dpm", covariance="full"))
