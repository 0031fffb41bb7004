"""The order of convergence of every deterministic solver, fitted against the closed-form solution."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussian import Gaussian, states

from fastdiff.engine.direct import integrate
from fastdiff.prediction import get_prediction
from fastdiff.schedules import EDM, RectifiedFlow, VPLinear
from fastdiff.solvers import SOLVERS, get_solver

FIXED = [s for s in SOLVERS.values() if not s.adaptive]
CASES = [s for s in FIXED if not s.stochastic] + [s.with_options(eta=0.0) for s in FIXED if "eta" in s.options]
CASES += [get_solver("dpmpp-2m-sde", eta=0.0, correction="heun")]
CASES += [get_solver(name, variant="taylor") for name in ("dpm-solver-2", "dpmpp-2s", "dpm-solver-2m", "dpmpp-2m")]
CASES += [get_solver(name, variant="taylor", nodes="grid") for name in ("dpm-solver-3", "dpmpp-3s")]
# Without halving the second derivative these are of third order.
CASES += [replace(get_solver(name, second_derivative=1.0), order=3) for name in ("dpm-solver-3m", "dpmpp-3m")]
CASES += [replace(get_solver("dpmpp-3m-sde", eta=0.0, second_derivative=1.0), order=3)]
CASES += [get_solver("edm-heun"), get_solver("edm-ablation-euler")]
CASES += [get_solver("edm-ablation-heun", alpha=alpha) for alpha in (1.0, 0.7)]
CASES += [get_solver(name, probability_flow=True) for name in ("euler-maruyama", "reverse-diffusion")]
CASES += [get_solver("quasi-taylor", degree=degree) for degree in (1, 3)]
CASES += [get_solver("unipc-2", variant="bh1", space="eps"), get_solver("unipc-3", variant="vary_coeff", space="eps")]
CASES += [replace(get_solver("unipc-2", variant="vary_coeff_released"), order=1)]
CASES += [replace(get_solver("lms", order=k), order=k) for k in (2, 3)]
# Times between which nothing is singular, so that the fitted slope is the method's own; at t = 0.1 of vp-linear the
# leading terms of the error of unipc-2 happen to cancel. What the network predicts does not matter to a solver
# (test_agreement), so each schedule has its own.
SCHEDULES = {
    "vp-linear": (VPLinear(), 0.9, 0.15, "v"),
    "edm": (EDM(0.02, 20.0), 10.0, 0.1, "edm"),
    "rectified-flow": (RectifiedFlow(), 0.9, 0.1, "flow"),
}
# Where alpha and sigma are linear in t the square of the Gaussian's solution x is quadratic in t, and then the leading
# error of the midpoint rule, x_ttt / 24 + x_t x_tt / (8 x), is zero: the next one is seen.
VANISHING = {("flow-midpoint", "edm"): 3, ("flow-midpoint", "rectified-flow"): 3}
# Numbers of intervals that are fine enough for the leading term of the error, and coarse enough for float64.
COUNTS = {1: (64, 128, 256, 512), 2: (120, 240, 480, 960), 3: (192, 384, 768), 4: (128, 256, 512)}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("solver", CASES, ids=lambda s: f"{s.name}{s.options or ''}")
def test_order(solver, name):
    schedule, first, last, prediction = SCHEDULES[name]
    data = Gaussian(schedule)
    model = data.network(prediction, lambda t: t)
    x = states() * data.marginal_std(first)
    ends = schedule.lam(first), schedule.lam(last)
    errors = []
    for count in COUNTS[solver.order]:
        times = schedule.t_of_lam(np.linspace(*ends, count + 1))
        # A multistep method starts with lower orders, which would be the order that is seen: so from an exact history.
        start = [data.exact(x, first, float(t)) for t in times[1 : solver.history + 1]]
        options = dict(start=start, draw=lambda n: torch.zeros_like(x))  # requested, and not used
        result = integrate(solver, model, x, schedule, times, get_prediction(prediction), **options)
        errors.append(float((result - data.exact(x, first, last)).abs().max()))
    slope = -np.polyfit(np.log(COUNTS[solver.order]), np.log(errors), 1)[0]
    order = VANISHING.get((solver.name, name), solver.order)
    assert abs(slope - order) <= 0.15, f"fitted order {slope:.3f}, errors {errors}"
