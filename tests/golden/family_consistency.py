"""openai/consistency_models: the multi-step sampler."""

import numpy as np
from case import Case

from fastdiff.schedules import EDM
from fastdiff.solvers import get_solver


def case(name, meta):
    schedule = EDM(meta["t_min"], meta["t_max"])
    low, high = (t ** (1 / meta["rho"]) for t in (meta["t_min"], meta["t_max"]))
    share = np.asarray(meta["ts"]) / (meta["discretization_steps"] - 1)
    times = (high + share * (low - high)) ** meta["rho"]
    return Case(get_solver("consistency"), schedule, np.clip(times, meta["t_min"], meta["t_max"]), prediction="x0")
