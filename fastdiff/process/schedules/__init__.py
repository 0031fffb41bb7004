"""Noise schedules: alpha(t), sigma(t), the half log-SNR lambda(t) = log(alpha / sigma), and their inverses.

A schedule describes the marginals x_t = alpha(t) x_0 + sigma(t) eps of a forward process (Kingma et al. 2021,
Variational Diffusion Models, Eq. 1). All of it is NumPy in float64: schedules are evaluated a few dozen times when a
Program is built, never inside the sampling loop.

Time `t` is continuous, and t = 0 is the data itself (alpha = 1, sigma = 0, lambda = inf). `model_time(t)` is the
number the network receives as its time argument, in the units that it was trained with.
"""

from __future__ import annotations

from collections.abc import Callable

from fastdiff.arguments import described
from fastdiff.errors import expect, unknown
from fastdiff.process.schedules.base import Float64Array, Point, Schedule
from fastdiff.process.schedules.flow import RectifiedFlow
from fastdiff.process.schedules.logsnr import CosineLogSNR
from fastdiff.process.schedules.respaced import Respaced
from fastdiff.process.schedules.ve import EDM, VE
from fastdiff.process.schedules.vp import SubVP, VariancePreserving, VPDiscrete, VPLinear

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "linear": VPDiscrete.linear,
    "scaled-linear": VPDiscrete.scaled_linear,
    "cosine": VPDiscrete.cosine,
    "vp-linear": VPLinear,
    "sub-vp": SubVP,
    "ve": VE,
    "edm": EDM,
    "rectified-flow": RectifiedFlow,
    "cosine-logsnr": CosineLogSNR,
}


def get_schedule(schedule: Schedule | str | None) -> Schedule:
    """The schedule of that name. Raises ValueError that lists the near names, TypeError for what is no schedule."""
    expect(schedule is not None, "schedule must be given: this model does not say on which one it was trained")
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise unknown("schedule", schedule, SCHEDULES)
        return SCHEDULES[schedule]()
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be a fastdiff Schedule or a name, got {described(schedule)}")
    return schedule


__all__ = [
    "EDM", "SCHEDULES", "VE", "CosineLogSNR", "Float64Array", "Point", "RectifiedFlow", "Respaced", "Schedule", "SubVP",
    "VPDiscrete", "VPLinear", "VariancePreserving", "get_schedule",
]  # fmt: skip
