"""DDIM: Song, Meng & Ermon 2021, Denoising Diffusion Implicit Models."""

from __future__ import annotations

from math import sqrt

from fastdiff.solvers.registry import solver


@solver(order=1, grid="trailing", source="Song et al. 2021, DDIM, Eq. 12")
def ddim(model, x, s, t, history, *, eta=0.0, noise):
    """eta = 0 is deterministic, eta = 1 the ancestral sampler of DDPM; Eq. 16 gives the noise between."""
    x0, eps = model.x0_eps(x, s)
    sigma = eta * ancestral_sigma(s, t) if eta else 0.0  # upwards, to encode, t.alpha may be 0
    mean = t.alpha * x0 + sqrt(t.sigma**2 - sigma**2) * eps
    return mean + sigma * noise() if sigma > 0 else mean


def ancestral_sigma(s, t):
    """Standard deviation of q(x_t | x_s, x0), the posterior of the forward process (Ho et al. 2020, Eq. 7)."""
    return t.sigma / s.sigma * sqrt(max(0.0, s.sigma**2 - (s.alpha / t.alpha * t.sigma) ** 2))
