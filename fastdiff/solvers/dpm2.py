"""The midpoint method in the noise ratio rho = sigma / alpha, plain and ancestral: DPM-2 of k-diffusion."""

from __future__ import annotations

from math import log

from fastdiff.solvers.euler import ancestral_split
from fastdiff.solvers.registry import solver


@solver(order=2, evaluations=2, grid="karras", source="k-diffusion, after Lu et al. 2022, DPM-Solver-2")
def dpm_2(model, x, s, t, history):
    """The slope at the geometric mean of both ratios. The last step, to the data, is Euler's."""
    return t.alpha * _midpoint(model, x, s, t.sigma / t.alpha)


@solver(order=2, evaluations=2, grid="karras", source="k-diffusion, after Lu et al. 2022, DPM-Solver-2")
def dpm_2_ancestral(model, x, s, t, history, *, eta=1.0, noise):
    """`dpm_2` down to a lower noise than that of t, then noise up to it."""
    down, up = ancestral_split(s, t, eta)
    y = _midpoint(model, x, s, down)
    return t.alpha * (y + up * noise() if up > 0 else y)


def _midpoint(model, x, s, rho):
    """y = x / alpha at ratio rho."""
    rho_s, y, eps = s.sigma / s.alpha, x / s.alpha, model.eps(x, s)
    if rho == 0:
        return y + (rho - rho_s) * eps
    middle = model.at_lam(-(log(rho_s) + log(rho)) / 2)
    rho_middle = middle.sigma / middle.alpha
    eps_middle = model.eps(middle.alpha * (y + (rho_middle - rho_s) * eps), middle)
    return y + (rho - rho_s) * eps_middle
