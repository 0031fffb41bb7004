"""The order of convergence of every deterministic solver, fitted against the closed-form solution."""

import numpy as np
import pytest
from gaussian import Gaussian, states

from fastdiff import sample
from fastdiff.schedules import VE, VPLinear
from fastdiff.solvers import SOLVERS

DETERMINISTIC = [s for s in SOLVERS.values() if not s.stochastic] + [
    s.with_options(eta=0.0) for s in SOLVERS.values() if "eta" in s.options
]
HEUN_CORRECTION = SOLVERS["dpmpp-2m-sde"].with_options(eta=0.0, correction="heun")
# Times between which nothing is singular, so that the fitted slope is the method's own.
CASES = {"vp-linear": (VPLinear(), 0.9, 0.1), "ve": (VE(0.02, 20.0), 10.0, 0.1)}


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("solver", [*DETERMINISTIC, HEUN_CORRECTION], ids=lambda s: f"{s.name}{s.options or ''}")
def test_order(solver, case, prediction):
    schedule, start, end = CASES[case]
    data = Gaussian(schedule)
    model = data.network(prediction, lambda t: t)
    x = states() * data.marginal_std(start)
    exact = data.exact(x, start, end)
    lam = np.linspace(schedule.lam(start), schedule.lam(end), 2)
    counts, errors = np.array([64, 128, 256, 512]), []
    for count in counts:
        times = schedule.t_of_lam(np.linspace(*lam, count + 1))
        result = sample(model, x, schedule=schedule, prediction=prediction, solver=solver, grid=times, seed=0)
        errors.append(float((result - exact).abs().max()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - solver.order) <= 0.15, f"fitted order {slope:.3f}, errors {errors}"
