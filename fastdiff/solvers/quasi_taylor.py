"""Taylor's expansion of the solution in the step, with ideal derivatives: Tachibana et al. 2021, Quasi-Taylor Samplers
for Diffusion Generative Models based on Ideal Derivatives.

The derivatives of the score are replaced by those for a single data point: along the step x0 is constant. What remains
to be expanded is then known in closed form, and its derivatives are those of the schedule. Since the network's own
change is left out, both solvers converge to the solution with order 1 at any degree.
"""

from __future__ import annotations

from math import factorial, sqrt

import numpy as np

from fastdiff.errors import expect
from fastdiff.solvers.registry import solver

SOURCE = "Tachibana et al. 2021, Quasi-Taylor Samplers"


@solver(order=1, source=f"{SOURCE}, deterministic")
def quasi_taylor(model, x, s, t, history, *, degree=2):
    """The expansion to h^degree of alpha(t - h) x0 + sigma(t - h) eps, which is DDIM's step; degree 1 is Euler's
    method. Needs a schedule that is smooth over the step. The step to the data returns x0."""
    expect(degree in (1, 2, 3), f"degree must be 1, 2 or 3, got {degree!r}")
    if t.sigma == 0:
        return model.x0(x, s)
    x0, eps = model.x0_eps(x, s)
    alpha, sigma = (_taylor(d, t.t - s.t) for d in _derivatives(model.schedule, s, degree))
    return alpha * x0 + sigma * eps


@solver(order=1, source=f"{SOURCE}, stochastic; strong Ito-Taylor of Kloeden & Platen 1992, Section 10.4")
def ito_taylor(model, x, s, t, history, *, degree=2, noise):
    """Euler-Maruyama (degree 1), or the strong Ito-Taylor scheme of order 1.5 (degree 2) of the reverse SDE. With x0
    constant that SDE is linear: its mean is alpha x0 + (alpha_s / sigma_s) (sigma^2 / alpha) eps, whose expansion is
    taken. Every step of degree 2 requests two draws. The step to the data returns x0."""
    expect(degree in (1, 2), f"degree must be 1 or 2, got {degree!r}")
    z1, z2 = noise(), noise() if degree == 2 else None
    if t.sigma == 0:
        return model.x0(x, s)
    x0, eps = model.x0_eps(x, s)
    h = s.t - t.t
    (a, a1, a2), (b, b1, b2) = _derivatives(model.schedule, s, 2)
    q = [b**2 / a, 2 * b * b1 / a - b**2 * a1 / a**2]  # sigma^2 / alpha and its derivatives
    q.append(2 * (b1**2 + b * b2) / a - 4 * b * b1 * a1 / a**2 - b**2 * a2 / a**2 + 2 * b**2 * a1**2 / a**3)
    mean = _taylor((a, a1, a2)[: degree + 1], -h) * x0 + a / b * _taylor(q[: degree + 1], -h) * eps
    g = sqrt(model.schedule.drift_diffusion(s.t)[1])
    if degree == 1:
        return mean + g * sqrt(h) * z1
    # d(g^2)/dt of g^2 = 2 sigma sigma' - 2 (alpha' / alpha) sigma^2, and the slope of the reverse drift in x.
    g1 = (b1**2 + b * b2 - (a2 / a - (a1 / a) ** 2) * b**2 - 2 * a1 / a * b * b1) / g
    slope = a1 / a - 2 * b1 / b
    w, area = sqrt(h) * z1, h**1.5 / 2 * (z1 + z2 / sqrt(3))  # W(h), and its integral over the step
    return mean + g * w - g1 * (h * w - area) + slope * g * area


def _taylor(derivatives, h):
    return sum(d * h**k / factorial(k) for k, d in enumerate(derivatives))


def _derivatives(schedule, s, degree):
    """alpha, sigma and their derivatives at s up to `degree`. The first are the schedule's own; the higher ones are
    taken from a polynomial through the first ones at or below s."""
    rates = np.array(schedule.rates(s.t))
    width = min(s.t, schedule.t_max / 4) / 8  # short of t = 0, where sigma is often sqrt(t)
    nodes = np.linspace(0.0, -1.0, 6)
    values = np.array([schedule.rates(s.t + width * node) for node in nodes])
    coefficients = np.linalg.solve(np.vander(nodes, increasing=True), values)
    higher = [factorial(k) * coefficients[k] / width**k for k in range(1, degree)]
    return zip((s.alpha, s.sigma), rates, *higher)
