"""Heun's method on the probability-flow ODE: Karras et al. 2022, Elucidating the Design Space (EDM)."""

from __future__ import annotations

from fastdiff.solvers.registry import solver


@solver(order=2, evaluations=2, grid="karras", source="Karras et al. 2022, EDM, Algorithm 1")
def heun(model, x, s, t, history):
    """With y = x / alpha and rho = sigma / alpha the ODE is dy / d rho = eps; the trapezoidal rule corrects Euler's.

    The last step, to the data, is Euler's: the slope at sigma = 0 is not known.
    """
    eps_s = model.eps(x, s)
    h = t.sigma / t.alpha - s.sigma / s.alpha
    y = x / s.alpha
    euler = t.alpha * (y + h * eps_s)
    if t.sigma == 0:
        return euler
    eps_t = model.eps(euler, t)
    return t.alpha * (y + h / 2 * (eps_s + eps_t))
