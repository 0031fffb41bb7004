"""yang-song/score_sde_pytorch: predictor-corrector sampling."""

import numpy as np
from case import Case

from fastdiff.schedules import VE, SubVP, VPLinear
from fastdiff.solvers import get_solver


class TimedVE(VE):
    """Whose network receives t."""

    def model_time(self, t):
        return t


SCHEDULES = {"vp": (VPLinear, 1e-3), "ve": (TimedVE, 1e-5), "subvp": (SubVP, 1e-3)}


def case(name, meta):
    kind, last = SCHEDULES[meta["sde"]]
    dashed = {key: (meta.get(key) or "none").replace("_", "-") for key in ("predictor", "corrector")}
    solver = get_solver(
        "predictor-corrector",
        **dashed,
        snr=float(meta.get("snr", 0.16)),
        n_steps_each=meta.get("n_steps_each", 1),
        probability_flow=bool(meta.get("probability_flow", False)),
        denoise=bool(meta.get("denoise", True)),
        discretization="released",
        norm="batch",
    )
    last = meta.get("eps", last)
    times = np.append(np.linspace(1.0, last, meta["N"]), 0.0)
    return Case(solver, kind(t_min=last / 2), times, prediction="score")  # VE turns to the data below t_min
