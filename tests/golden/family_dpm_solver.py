"""LuChengTHU/dpm-solver: every `method` of its class DPM_Solver."""

import numpy as np
from case import Case

from fastdiff.grids import fast_orders
from fastdiff.schedules import VPDiscrete, VPLinear
from fastdiff.solvers import get_solver


class Discrete(VPDiscrete):
    """The cases' network receives the continuous time."""

    def model_time(self, t):
        return t


def spaced(schedule, skip_type, start, end, count):
    """`count` intervals from one time to another."""
    if skip_type == "time_uniform":
        return np.linspace(start, end, count + 1)
    if skip_type == "time_quadratic":
        return np.linspace(start**0.5, end**0.5, count + 1) ** 2
    assert skip_type == "logSNR"
    times = schedule.t_of_lam(np.linspace(schedule.lam(start), schedule.lam(end), count + 1))
    times[0], times[-1] = start, end
    return times


def nested(schedule, skip_type, start, end, orders):
    """The points of steps of these orders, their inner ones included: steps of equal size in lambda with "logSNR", else
    of equal size an order."""
    if skip_type == "logSNR":
        outer = spaced(schedule, skip_type, start, end, len(orders))
    else:
        outer = spaced(schedule, skip_type, start, end, sum(orders))[np.cumsum([0, *orders])]
    steps = [spaced(schedule, skip_type, *ends, order)[:-1] for *ends, order in zip(outer, outer[1:], orders)]
    return np.concatenate([*steps, [end]])


def case(name, meta):
    end, order, steps, skip_type = meta["t_end"] or 1e-3, meta["order"], meta["steps"], meta["skip_type"]
    schedule = {
        "discrete-linear": Discrete.linear,
        "discrete-scaled-linear": Discrete.scaled_linear,
        "vp-linear": lambda: VPLinear(t_min=end),
    }[meta["schedule"]]()
    family = {"dpmsolver": "dpm-solver", "dpmsolver++": "dpmpp"}[meta["algorithm_type"]]
    ends, variant = (schedule, skip_type, 1.0, end), {"variant": meta["solver_type"]}
    if meta["method"] == "adaptive":
        times = [1.0, end]
        solver = get_solver(f"{family}-{order - 1}{order}", **variant)
    elif order == 1:  # the same in all methods and types
        times = spaced(*ends, steps)
        solver = get_solver("dpm-solver-1")
    elif meta["method"] == "multistep":
        times = spaced(*ends, steps)
        lower = meta["lower_order_final"] and steps < 10  # the original has it for so few steps only
        solver = get_solver(f"{family}-{order}m", lower_order_final=lower, **variant)
    elif meta["method"] == "singlestep":
        times = nested(*ends, fast_orders(steps, order))
        solver = get_solver({"dpm-solver": "dpm-fast", "dpmpp": "dpmpp-fast"}[family], order=order, **variant)
    else:
        assert meta["method"] == "singlestep_fixed"
        times = nested(*ends, [order] * (steps // order))
        solver = get_solver({"dpm-solver": "dpm-solver-{}", "dpmpp": "dpmpp-{}s"}[family].format(order), nodes="grid")
        solver = solver.with_options(**variant)
    if meta["denoise_to_zero"]:
        times = [*times, 0.0]
    return Case(solver, schedule, times, prediction="eps")
