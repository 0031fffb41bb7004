"""DPM-Solver++: Lu et al. 2022, Fast Solver for Guided Sampling of Diffusion Probabilistic Models."""

from __future__ import annotations

from math import expm1

from fastdiff.solvers.exponential import slope_weight
from fastdiff.solvers.registry import solver


@solver(order=2, history=1, grid="logsnr", source="Lu et al. 2022, DPM-Solver++, Algorithm 2")
def dpmpp_2m(model, x, s, t, history, *, variant="dpmsolver", lower_order_final=False):
    """Second-order multistep in x0. The first step, and the last one to the data, are of first order.

    lower_order_final: so is the last one before the data, as the authors have it for less than 10 steps.
    """
    d = m = model.x0(x, s)
    h = t.lam - s.lam
    if history and t.sigma > 0 and not (lower_order_final and model.noisy_steps_left == 1):
        before, m_before = history[-1]
        r = (s.lam - before.lam) / h
        d = m + slope_weight(variant, -h) / r * (m - m_before)
    history.append((s, m))
    return (t.sigma / s.sigma) * x - t.alpha * expm1(-h) * d
