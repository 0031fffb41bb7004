"""NVlabs/edm: Algorithm 2."""

from case import Case

from fastdiff.grids import karras
from fastdiff.schedules import EDM
from fastdiff.solvers import get_solver


def case(name, meta):
    schedule = EDM(0.002, 80.0)
    return Case(get_solver("heun"), schedule, karras(schedule, meta["num_steps"]), prediction="x0", scale=80.0)
