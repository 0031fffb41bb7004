"""CompVis/latent-diffusion: PLMS, which ends at the first training step, not at the data."""

from case import Case

from fastdiff.schedules import VPDiscrete
from fastdiff.solvers import get_solver


def case(name, meta):
    schedule = VPDiscrete.scaled_linear()
    steps = range(1, 1001, 1000 // meta["steps"])
    return Case(
        get_solver("plms"),
        schedule,
        times=[(n + 1) / 1000 for n in [*reversed(steps), 0]],
        prediction="eps",
        tolerance=1e-6,
        time_of=lambda n: (n + 1) / 1000,
    )
