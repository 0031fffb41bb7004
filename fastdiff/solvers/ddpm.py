"""DDPM: Ho, Jain & Abbeel 2020, Denoising Diffusion Probabilistic Models."""

from __future__ import annotations

from math import sqrt

from fastdiff.errors import unknown
from fastdiff.solvers.ddim import ancestral_sigma
from fastdiff.solvers.registry import solver


@solver(order=1, grid="linspace", source="Ho et al. 2020, DDPM, Eq. 7 and Algorithm 2")
def ddpm(model, x, s, t, history, *, variance="small", noise):
    """Ancestral sampling: the mean of q(x_t | x_s, x0) and noise of variance beta-tilde ("small") or beta ("large").

    On any grid the process is the respaced one (Nichol & Dhariwal 2021, Section 4): its alpha ratio is that of s and t.
    """
    if variance not in ("small", "large"):
        raise unknown("variance", variance, ("small", "large"))
    x0 = model.x0(x, s)
    ratio = s.alpha / t.alpha  # sqrt(1 - beta) of the step from t to s
    beta = s.sigma**2 - (ratio * t.sigma) ** 2
    mean = (t.alpha * beta * x0 + ratio * t.sigma**2 * x) / s.sigma**2
    if t.sigma == 0:
        return mean
    return mean + (sqrt(beta) if variance == "large" else ancestral_sigma(s, t)) * noise()
