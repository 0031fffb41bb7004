"""NVlabs/edm: the generalised sampler of the ablations."""

from functools import partial
from math import sqrt

import numpy as np
from case import Case
from family_edm import churn

from fastdiff.edm_table import EDMTable, iddpm_steps, ve_steps, vp_steps
from fastdiff.grids import karras
from fastdiff.schedules import VPLinear
from fastdiff.solvers import get_solver

VP = VPLinear(0.1, 20.0)
RANGES = {  # noise levels that each discretisation takes where none are given
    "vp": tuple(float(np.exp(-VP.lam(t))) for t in (1e-3, 1.0)),
    "ve": (0.02, 100.0),
    "iddpm": (0.002, 81.0),
    "edm": (0.002, 80.0),
}


def case(name, meta):
    discretization = meta.get("discretization", "edm")
    low, high = RANGES[discretization]
    low, high = meta.get("sigma_min") or low, meta.get("sigma_max") or high
    kinds = meta.get("schedule", "linear"), meta.get("scaling", "none")
    first = meta.get("epsilon_s", 1e-3)
    schedule = EDMTable(*kinds, low, high, first=first)
    grids = {
        "vp": partial(vp_steps, first=first),
        "ve": ve_steps,
        "iddpm": partial(iddpm_steps, levels=meta.get("M", 1000), c1=meta.get("C_1", 0.001), c2=meta.get("C_2", 0.008)),
        "edm": partial(karras, rho=meta.get("rho", 7)),
    }
    times = grids[discretization](schedule, meta["num_steps"])
    start = schedule.point(times[0])
    if meta.get("S_churn"):  # it goes above sigma_max
        schedule.t_max = float(schedule.t_of_ratio(high * sqrt(2)))
    options = {"last": "euler", **churn(meta)}
    if (solver := meta.get("solver", "heun")) == "heun":
        options["alpha"] = float(meta.get("alpha", 1.0))
    return Case(
        get_solver(f"edm-ablation-{solver}", **options),
        schedule,
        times,
        prediction="x0",
        scale=start.sigma,
        time_of=lambda sigma: float(schedule.t_of_ratio(sigma)),
    )
