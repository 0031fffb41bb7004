"""The weak order of the stochastic solvers: how fast mean and variance of the sample approach the exact ones.

There is no sampling error in it. For normal data the exact network is affine in the state, and so is a run in its
initial state and its draws: one run for each, all zero but that one, gives every coefficient, and the moments follow.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussian import Gaussian

from fastdiff.engine.direct import integrate
from fastdiff.prediction import PREDICTIONS
from fastdiff.schedules import EDM, VPLinear
from fastdiff.solvers import get_solver

SCHEDULES = {"vp-linear": (VPLinear(), 0.9, 0.1), "edm": (EDM(0.02, 20.0), 10.0, 0.1)}
COUNTS = (64, 128, 256, 512)
FINE = (512, 1024, 2048)
CASES = [
    get_solver("ddpm"),
    get_solver("ddpm", variance="large"),
    get_solver("ddim", eta=1.0),
    get_solver("euler-ancestral"),
    get_solver("dpm-2-ancestral"),
    get_solver("dpmpp-sde"),
    get_solver("dpmpp-sde", eta=0.5, r=0.7),
    replace(get_solver("dpmpp-sde", correlated=False), order=1),
    get_solver("dpmpp-2s-ancestral"),
    get_solver("dpmpp-2m-sde"),
    get_solver("dpmpp-2m-sde", correction="heun"),
    get_solver("dpmpp-3m-sde"),
    get_solver("euler-maruyama"),
    get_solver("reverse-diffusion"),
    get_solver("ancestral-sampling"),
    get_solver("edm-heun", s_churn=20.0),
    get_solver("edm-ablation-euler", s_churn=20.0),
    get_solver("edm-ablation-heun", s_churn=20.0),
    get_solver("ito-taylor", degree=1),
    get_solver("ito-taylor", degree=2),
]


def moments(solver, data, times):
    """Mean and variance at the last time, from the exact ones at the first."""
    first = data.schedule.point(times[0])
    draws = 2 * (len(times) - 1)
    x = torch.zeros(2 + draws, 1, dtype=torch.float64)
    x[1] = 1.0

    def draw(number):
        z = torch.zeros_like(x)
        z[2 + number] = 1.0
        return z

    network = data.network("eps", lambda t: t)
    result = integrate(solver, network, x, data.schedule, times, PREDICTIONS["eps"], draw=draw)[:, 0].numpy()
    constant, response, *responses = result - np.append(0.0, np.full(len(result) - 1, result[0]))
    variance = (response * data.marginal_std(times[0])) ** 2 + np.square(responses).sum()
    return constant + response * first.alpha * data.mean, variance


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("solver", CASES, ids=lambda s: f"{s.name}{s.options or ''}")
def test_weak_order(solver, name):
    schedule, first, last = SCHEDULES[name]
    data = Gaussian(schedule)
    ends = schedule.lam(first), schedule.lam(last)
    exact, std = schedule.point(last).alpha * data.mean, data.marginal_std(last)
    counts = FINE if solver.name == "dpmpp-3m-sde" else COUNTS  # its errors of orders 2 and 3 cancel around 32 steps
    errors = []
    for count in counts:
        mean, variance = moments(solver, data, schedule.t_of_lam(np.linspace(*ends, count + 1)))
        errors.append(abs(mean - exact) / std + abs(variance / std**2 - 1))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - solver.order) <= 0.15, f"fitted order {slope:.3f}, errors {errors}"
