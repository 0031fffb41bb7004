"""The stochastic samplers of Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Models (EDM).

All of them raise the noise of the state before a step ("churn"): s_churn is its amount, divided among the steps;
s_min and s_max the noise ratios sigma / alpha between which it is raised; s_noise the standard deviation of what is
added. With s_churn = 0 they are deterministic. Every step requests one draw, whether or not it is used, as released.
"""

from __future__ import annotations

from math import inf, log, sqrt

from fastdiff.errors import expect, unknown
from fastdiff.solvers.flow import two_stage
from fastdiff.solvers.heun import heun
from fastdiff.solvers.registry import solver


@solver(order=2, evaluations=2, grid="karras", source="Karras et al. 2022, EDM, Algorithm 2")
def edm_heun(model, x, s, t, history, *, s_churn=0.0, s_min=0.0, s_max=inf, s_noise=1.0, noise):
    """`heun` from a raised noise level. The order is that without churn."""
    x, s = _churn(model, x, s, s_churn, s_min, s_max, s_noise, noise())
    return heun(model, x, s, t, history)


@solver(order=1, grid="karras", source="Karras et al. 2022, EDM, Eq. 4, in the time of the schedule; NVlabs/edm")
def edm_ablation_euler(model, x, s, t, history, *, last="x0", s_churn=0.0, s_min=0.0, s_max=inf, s_noise=1.0, noise):
    """Euler's method in t on dx/dt, for the ablations over noise schedules and scalings (fastdiff.edm_table).

    last: the step to the data, "x0" or, as released, "euler" like the others, which leaves some of the noise where
    sigma is not linear in t.
    """
    x, s = _churn(model, x, s, s_churn, s_min, s_max, s_noise, noise())
    return _to_data(model, x, s, t, last) if t.sigma == 0 else x + (t.t - s.t) * model.velocity(x, s)


@solver(
    order=2, evaluations=2, grid="karras", source="Karras et al. 2022, EDM, Algorithm 3, in the time of the schedule"
)
def edm_ablation_heun(
    model, x, s, t, history, *, alpha=1.0, last="x0", s_churn=0.0, s_min=0.0, s_max=inf, s_noise=1.0, noise
):
    """Second-order Runge-Kutta in t on dx/dt; alpha is the position of the second evaluation: 1 is Heun's method, 1/2
    the midpoint's. last: as in `edm-ablation-euler`."""
    expect(0 < alpha <= 1, f"alpha must lie in (0, 1], got {alpha!r}")
    x, s = _churn(model, x, s, s_churn, s_min, s_max, s_noise, noise())
    return _to_data(model, x, s, t, last) if t.sigma == 0 else two_stage(model, x, s, t, alpha)


def _to_data(model, x, s, t, last):
    if last not in ("x0", "euler"):
        raise unknown("last", last, ("x0", "euler"))
    return model.x0(x, s) if last == "x0" else x + (t.t - s.t) * model.velocity(x, s)


def _churn(model, x, s, s_churn, s_min, s_max, s_noise, z):
    """(state, point) with the noise ratio raised by the factor 1 + gamma, at most to the schedule's highest."""
    expect(s_churn >= 0 and s_noise >= 0, f"s_churn and s_noise must be >= 0, got {s_churn!r} and {s_noise!r}")
    rho = s.sigma / s.alpha
    gamma = min(s_churn / model.steps, sqrt(2) - 1)
    if gamma == 0 or not s_min <= rho <= s_max:
        return x, s
    last = model.at(model.schedule.t_max)
    hat = model.at_lam(-log(rho * (1 + gamma))) if last.alpha * rho * (1 + gamma) < last.sigma else last
    rho_hat = hat.sigma / hat.alpha
    return hat.alpha * (x / s.alpha + s_noise * sqrt((rho_hat - rho) * (rho_hat + rho)) * z), hat
