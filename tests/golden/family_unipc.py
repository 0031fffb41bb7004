"""wl-zhao/UniPC, uni_pc.py: a run ends at t_end, not at the data."""

import numpy as np
from case import Case

from fastdiff.schedules import VPLinear
from fastdiff.solvers import get_solver


def times(schedule, skip_type, start, end, steps):
    if skip_type == "logSNR":
        t = schedule.t_of_lam(np.linspace(*schedule.lam([start, end]), steps + 1))
        t[[0, -1]] = start, end
        return t
    power = {"time_uniform": 1, "time_quadratic": 2}[skip_type]
    return np.linspace(start ** (1 / power), end ** (1 / power), steps + 1) ** power


def case(name, meta):
    schedule = VPLinear(0.1, 20.0)
    solver = get_solver(
        f"unipc-{meta['order']}",
        variant={"vary_coeff": "vary_coeff_released"}.get(meta["variant"], meta["variant"]),
        space={"data_prediction": "x0", "noise_prediction": "eps"}[meta["algorithm_type"]],
        lower_order_final=meta["lower_order_final"],
    )
    grid = times(schedule, meta["skip_type"], 1.0, meta["t_end"], meta["steps"])
    return Case(solver, schedule, grid, prediction="eps", tolerance=1e-5)
