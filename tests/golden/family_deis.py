"""qsh-zh/deis, th_deis: its alpha is alpha_bar; a run ends at t_end, not at the data."""

import numpy as np
from case import FLOAT64, Case

from fastdiff.schedules import VPLinear
from fastdiff.solvers import get_solver

RIEMANN_SUMS = 1e-4  # the original's coefficients of t_ab and rho_ab


def times(schedule, phase, order, start, end, steps):
    """Equal steps in t^(1/order) ("t"), in log rho ("log") or in rho^(1/order) ("rho")."""
    if phase == "t":
        t = np.linspace(start ** (1 / order), end ** (1 / order), steps + 1) ** order
    else:
        lam = schedule.lam([start, end])
        if phase == "log":
            lam = np.linspace(*lam, steps + 1)
        else:
            lam = -order * np.log(np.linspace(*np.exp(-lam / order), steps + 1))
        t = schedule.t_of_lam(lam)
    t[[0, -1]] = start, end
    return t


def case(name, meta):
    schedule = VPLinear(0.1, 20.0)
    method = meta["method"]
    solver = {
        "t_ab": f"deis-{meta['ab_order']}",
        "rho_ab": f"deis-rho-{meta['ab_order']}",
        "rho_rk": "euler" if meta["rk_method"] == "1euler" else f"rho-{meta['rk_method']}",
        "ipndm": "ipndm",
    }[method]
    phase, order = ("t", 1) if method == "ipndm" else (meta["ts_phase"], meta["ts_order"])
    return Case(
        get_solver(solver),
        schedule,
        times(schedule, phase, order, meta["t_start"], meta["t_end"], meta["steps"]),
        prediction="eps",
        tolerance=RIEMANN_SUMS if method in ("t_ab", "rho_ab") else FLOAT64,
    )
