"""Classical Runge-Kutta methods on dx/dt = alpha' x0 + sigma' eps, in the time of the schedule: for flow matching and
rectified flow (Liu et al. 2023; Lipman et al. 2023), and any other schedule.

Nothing divides by alpha, so that a run of a "flow" prediction starts at t = 1. It may end at t = 0 with all its stages
there: such a network is trained on the data itself. Other predictions do not determine the velocity at sigma = 0, and
schedules with sqrt(t) in sigma have none there; then the step to the data returns x0, from one call.
"""

from __future__ import annotations

from math import isfinite

from fastdiff.solvers.registry import solver


@solver(order=1, source="Liu et al. 2023, Rectified Flow, Section 2.1")
def flow_euler(model, x, s, t, history):
    """One slope a step."""
    if not _regular(model, t):
        return model.x0(x, s)
    return x + (t.t - s.t) * model.velocity(x, s)


@solver(order=2, evaluations=2, source="Lipman et al. 2023, Flow Matching, Section 6; midpoint method")
def flow_midpoint(model, x, s, t, history):
    """The slope in the middle of the step."""
    if not _regular(model, t):
        return model.x0(x, s)
    return two_stage(model, x, s, t, 0.5)


@solver(order=2, evaluations=2, source="Lipman et al. 2023, Flow Matching, Section 6; Heun's method")
def flow_heun(model, x, s, t, history):
    """The mean of the slopes at both ends of the step."""
    if not _regular(model, t):
        return model.x0(x, s)
    return two_stage(model, x, s, t, 1.0)


@solver(order=4, evaluations=4, source="Kutta 1901; Lipman et al. 2023, Flow Matching, Section 6")
def flow_rk4(model, x, s, t, history):
    """The classical method of four stages."""
    if not _regular(model, t):
        return model.x0(x, s)
    h, middle = t.t - s.t, model.at((s.t + t.t) / 2)
    k1 = model.velocity(x, s)
    k2 = model.velocity(x + h / 2 * k1, middle)
    k3 = model.velocity(x + h / 2 * k2, middle)
    k4 = model.velocity(x + h * k3, t)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def two_stage(model, x, s, t, position):
    """Second-order Runge-Kutta from s to t with the second slope at `position` of the step, in (0, 1]."""
    h = t.t - s.t
    k1 = model.velocity(x, s)
    k2 = model.velocity(x + position * h * k1, t if position == 1 else model.at(s.t + position * h))
    return x + h * ((1 - 1 / (2 * position)) * k1 + 1 / (2 * position) * k2)


def _regular(model, t):
    """Whether the network determines a finite velocity at t."""
    return t.sigma > 0 or (model.prediction.name == "flow" and all(map(isfinite, model.schedule.rates(t.t))))
