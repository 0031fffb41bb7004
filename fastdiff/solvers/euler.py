"""Euler's method in the noise ratio rho = sigma / alpha, plain and ancestral, as in k-diffusion.

With y = x / alpha the probability-flow ODE is dy / d rho = eps (Karras et al. 2022, EDM, Eq. 1 and Appendix B).
"""

from __future__ import annotations

from math import sqrt

from fastdiff.solvers.registry import solver


@solver(order=1, grid="karras", source="Karras et al. 2022, EDM, Algorithm 1 without its correction")
def euler(model, x, s, t, history):
    """One slope a step; the same as DDIM with eta = 0."""
    h = t.sigma / t.alpha - s.sigma / s.alpha
    return t.alpha * (x / s.alpha + h * model.eps(x, s))


@solver(order=1, grid="karras", source="Song et al. 2021, Score SDE, Appendix F; k-diffusion")
def euler_ancestral(model, x, s, t, history, *, eta=1.0, noise):
    """Euler's method down to a lower noise than that of t, then noise up to it. eta = 0 is `euler`."""
    down, up = ancestral_split(s, t, eta)
    y = x / s.alpha + (down - s.sigma / s.alpha) * model.eps(x, s)
    return t.alpha * (y + up * noise() if up > 0 else y)


def ancestral_split(s, t, eta):
    """(down, up) with down^2 + up^2 = rho_t^2: the ratio to go down to, and what noise adds; up of the posterior times
    eta, at most rho_t."""
    rho_s, rho_t = s.sigma / s.alpha, t.sigma / t.alpha
    up = min(rho_t, eta * rho_t * sqrt(max(0.0, 1 - (rho_t / rho_s) ** 2)))
    return sqrt(rho_t**2 - up**2), up
