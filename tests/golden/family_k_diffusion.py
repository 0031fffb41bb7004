"""crowsonkb/k-diffusion: the sampler is named in the case's name."""

from case import Case

from fastdiff.grids import karras, logsnr
from fastdiff.schedules import EDM
from fastdiff.solvers import get_solver


def case(name, meta):
    sampler = name.split("/")[1].split("-", 1)[1].replace("_", "-")
    schedule = EDM(meta["sigma_min"], meta["sigma_max"])
    times = (
        karras(schedule, meta["steps"], rho=meta["rho"])
        if meta["schedule"] == "karras"
        else logsnr(schedule, meta["steps"])
    )
    options = {ours: meta[theirs] for ours, theirs in (("eta", "eta"), ("correction", "solver_type")) if theirs in meta}
    return Case(get_solver(sampler, **options), schedule, times, prediction="x0")
