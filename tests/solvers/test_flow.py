"""Flow matching from pure noise to the data, and EDM's samplers in the same time."""

import numpy as np
import pytest
import torch
from conftest import relative_error
from gaussian import Gaussian, states

import fastdiff
from fastdiff import sample
from fastdiff.schedules import EDM, RectifiedFlow
from fastdiff.solvers import get_solver

FLOW = RectifiedFlow()


class Flow(Gaussian):
    """The velocity of the straight path, at its ends too."""

    def __init__(self):
        super().__init__(FLOW)

    def model(self, x, t):
        time = float(t[0])
        self.calls.append(time)
        p = FLOW.point(time)
        eps_minus_x0 = p.sigma - p.alpha * self.std**2  # of x - alpha mean, times its variance
        return eps_minus_x0 / self.marginal_std(time) ** 2 * (x - p.alpha * self.mean) - self.mean


@pytest.mark.parametrize(
    ("name", "order"), [("flow-euler", 1), ("flow-midpoint", 3), ("flow-heun", 2), ("flow-rk4", 4)]
)
def test_the_whole_way_has_the_full_order(name, order):
    """From t = 1 to t = 0, all stages of the last step included; why the midpoint's is 3 here is in test_order.py."""
    counts = (80, 160, 320) if order == 4 else (100, 200, 400)
    x, errors = states(), []
    for count in counts:
        data = Flow()
        result = sample(data.model, x, schedule=FLOW, prediction="flow", solver=name, steps=count)
        assert len(data.calls) == count * get_solver(name).evaluations
        errors.append(float((result - data.exact(x, 1.0, 0.0)).abs().max()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) <= 0.15, f"fitted order {slope:.3f}, errors {errors}"


@pytest.mark.parametrize("solver", ["dpmpp-2m", "ddim", "flow-euler"])
def test_solvers_start_at_pure_noise(solver):
    """On the schedule's own grid, whose first lambda is -inf."""
    data, x = Flow(), states()
    coarse, fine = (
        sample(data.model, x, schedule="rectified-flow", prediction="flow", solver=solver, steps=n, seed=0)
        for n in (50, 400)
    )
    exact = data.exact(x, 1.0, 0.0)
    assert relative_error(fine, exact) < 0.2 * relative_error(coarse, exact) < 0.02


def test_a_solver_that_divides_by_alpha_says_so():
    with pytest.raises(ValueError, match=r"solver 'heun' cannot step from t=1 to t=0\.75 of rectified-flow"):
        sample(Flow().model, (2, 3), schedule=FLOW, prediction="flow", solver="heun", steps=4)


@pytest.mark.parametrize(("ablation", "solver"), [("edm-ablation-euler", "euler"), ("edm-ablation-heun", "heun")])
def test_where_time_is_the_noise_they_are_those_of_edm(ablation, solver):
    """Where alpha = 1 and sigma = t, also with churn."""
    data, x = Gaussian(EDM()), 80 * states()
    common = dict(schedule=EDM(), prediction="x0", steps=9, seed=0)
    results = [sample(data.network("x0", lambda t: t), x, solver=name, **common) for name in (ablation, solver)]
    assert relative_error(*results) < 1e-12
    if solver == "heun":
        churn = dict(s_churn=10.0, s_max=40.0, s_noise=1.01)
        names = ablation, "edm-heun"
        results = [sample(data.network("x0", lambda t: t), x, solver=get_solver(n, **churn), **common) for n in names]
        assert relative_error(*results) < 1e-12
        assert relative_error(results[0], sample(data.network("x0", lambda t: t), x, solver=solver, **common)) > 1e-3


def test_churn_stays_in_the_schedule():
    """At its start there is no higher noise to raise it to; and it stops at a factor of sqrt(2)."""
    data, x = Gaussian(EDM()), 80 * states()
    solver = get_solver("edm-heun", s_churn=1e3)
    sample(data.network("x0", lambda t: t), x, schedule=EDM(), prediction="x0", solver=solver, steps=6, seed=0)
    assert data.calls[0] == 80.0
    grid = fastdiff.grids.karras(EDM(), 6)
    assert np.allclose(data.calls[2::2], np.minimum(grid[1:-1] * 2**0.5, 80.0))


def test_consistency_in_one_step_and_two():
    """Algorithm 1 on a function that maps everything to the data: noise of t^2 - t_min^2 in between."""
    schedule, seen = EDM(0.002, 80.0), []

    def model(x, t):
        seen.append(x.clone())
        return torch.zeros_like(x)

    z = torch.ones(2, 16, 4, dtype=torch.float64)
    common = dict(schedule=schedule, prediction="x0", solver="consistency", noise=z)
    assert not sample(model, states(), grid=[80.0, 0.002], **common).any()
    assert not sample(model, states(), grid=[80.0, 2.0, 0.0], **common).any()
    assert torch.allclose(seen[-1], z[0] * (2.0**2 - 0.002**2) ** 0.5, rtol=1e-14)
