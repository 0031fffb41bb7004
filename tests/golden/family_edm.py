"""NVlabs/edm: Algorithm 2."""

from math import sqrt

from case import Case

from fastdiff.grids import karras
from fastdiff.schedules import EDM
from fastdiff.solvers import get_solver

CHURN = ("S_churn", "S_min", "S_max", "S_noise")


def churn(meta):
    """The options of that name."""
    return {name.lower(): float(meta[name]) for name in CHURN if meta.get(name) is not None}


def case(name, meta):
    sigma_min, sigma_max = meta.get("sigma_min", 0.002), meta.get("sigma_max", 80.0)
    times = karras(EDM(sigma_min, sigma_max), meta["num_steps"], rho=meta.get("rho", 7))
    # Churn goes above sigma_max.
    schedule = EDM(sigma_min, sigma_max * sqrt(2) if meta.get("S_churn") else sigma_max)
    return Case(get_solver("edm-heun", **churn(meta)), schedule, times, prediction="x0", scale=sigma_max)
