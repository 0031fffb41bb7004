"""crowsonkb/k-diffusion: the sampler is named in the case's name."""

import numpy as np
from case import ARRAYS, Case
from family_dpm_solver import nested

from fastdiff.grids import fast_orders, karras, logsnr
from fastdiff.schedules import EDM, VPLinear
from fastdiff.solvers import get_solver

OPTIONS = {"eta": "eta", "order": "order", "correction": "solver_type"}  # ours: theirs


def sigmas(meta):
    """The noise levels, the last one 0: they are the times of the EDM schedule."""
    if meta["schedule"] == "vp":  # those of the VP SDE at equally spaced times
        return np.append(np.exp(-VPLinear().lam(np.linspace(1, 1e-3, meta["steps"]))), 0.0)
    schedule = EDM(meta["sigma_min"], meta["sigma_max"])
    if meta["schedule"] == "karras":
        return karras(schedule, meta["steps"], rho=meta.get("rho", 7.0))
    assert meta["schedule"] == "exponential"
    return logsnr(schedule, meta["steps"])


def case(name, meta):
    sampler = name.split("/")[1].split("-", 1)[1].replace("_", "-")
    times = sigmas(meta)
    if sampler in ("dpm-fast", "dpm-adaptive"):  # these take the two ends alone, and do not go on to the data
        start = ARRAYS[f"{name}/model_times"][0]
        ends = meta.get("sigma_max", times[0]), meta.get("sigma_min", times[-2])
        times = np.array(ends if np.isclose(ends[0], start) else times[[0, -2]])
    schedule = EDM(times[times > 0][-1], times[0])
    if sampler == "dpm-fast":
        times = nested(schedule, "logSNR", *times, fast_orders(meta["steps"], 3))
    options = {ours: meta[theirs] for ours, theirs in OPTIONS.items() if theirs in meta}
    if sampler == "dpmpp-sde":  # the stored draws are independent
        options["correlated"] = False
    return Case(get_solver(sampler, **options), schedule, times, prediction="x0")
