"""The parts of exponential integrators in lambda = log(alpha / sigma), for predictions of eps and of x0.

The ODE's linear part is solved exactly; what is left is an integral of the prediction m, which each solver replaces by
a polynomial in u = (lambda - lambda_s) / h, h = lambda_t - lambda_s:

    eps: x_t = alpha_t / alpha_s x - sigma_t h int_0^1 e^((1 - u) h) m(u) du   (Lu et al. 2022, DPM-Solver, Eq. 3.4)
    x0:  x_t = sigma_t / sigma_s x + alpha_t h int_0^1 e^(-(1 - u) h) m(u) du  (Lu et al. 2022, DPM-Solver++, Eq. 8)
"""

from __future__ import annotations

from math import expm1

from fastdiff.errors import unknown
from fastdiff.solvers.phi import phi


def exponential_step(x, s, t, derivatives, data):
    """The state at t where the prediction, x0 if `data` or else eps, is d_0 + u d_1 + u^2 / 2 d_2 + ..., `derivatives`
    being its d_0, d_1, ...; exact for such a prediction."""
    h = t.lam - s.lam
    y, scale, z = (t.sigma / s.sigma * x, t.alpha, -h) if data else (t.alpha / s.alpha * x, t.sigma, h)
    return y - scale * integral(derivatives, z)


def integral(derivatives, z):
    """z int_0^1 e^((1 - u) z) m(u) du of that polynomial m; z may be -inf where it is a constant."""
    return expm1(z) * derivatives[0] + sum(z * phi(k, z) * d for k, d in enumerate(derivatives[1:], 2))


def backward_derivatives(s, m, history, h):
    """h dm/dlambda and h^2 d^2m/dlambda^2 at s, where the output is m: as many as there are earlier outputs in
    `history`, newest last, up to two."""
    if not history:
        return []
    (p, m_p), *older = reversed(history)
    slope = (m - m_p) * (h / (s.lam - p.lam))
    if not older:
        return [slope]
    q, m_q = older[0]
    curve = (slope - (m_p - m_q) * (h / (p.lam - q.lam))) * (h / (s.lam - q.lam))  # the second divided difference
    return [slope + (s.lam - p.lam) / h * curve, 2 * curve]


def slope_weight(variant, z):
    """What h dm/dlambda counts beside m in a second-order step: 1/2 ("dpmsolver"), or as is exact for a linear m
    ("taylor"). z: -h for x0, h for eps."""
    if variant not in ("dpmsolver", "taylor"):
        raise unknown("variant", variant, ("dpmsolver", "taylor"))
    return 0.5 if variant == "dpmsolver" else phi(2, z) / phi(1, z)


def first_order(model, x, s, t):
    """A constant prediction, of x0 or eps alike: DDIM. Unlike others it may end at the data or start at alpha = 0."""
    x0, eps = model.x0_eps(x, s)
    return t.alpha * x0 + t.sigma * eps if t.sigma > 0 else t.alpha * x0
