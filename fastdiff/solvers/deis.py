"""DEIS: Zhang & Chen 2023, Fast Sampling of Diffusion Models with Exponential Integrator; and k-diffusion's `lms`.

With y = x / alpha and rho = sigma / alpha the probability-flow ODE is dy / d rho = eps (Prop. 3). A step integrates
over rho the polynomial through the newest eps: a polynomial in t for `deis-0` to `deis-3` (tAB-DEIS, the number is its
degree), in rho for `deis-rho-0` to `deis-rho-3` (rhoAB-DEIS). Degree 0 is DDIM. A run starts with degree 0 and gains
one a step, as the history fills.
"""

from __future__ import annotations

from math import isinf, prod

import numpy as np

from fastdiff.errors import expect
from fastdiff.solvers.exponential import first_order
from fastdiff.solvers.registry import solver

# Gauss-Legendre on (0, 1): exact for polynomials in rho; for those in t to 1e-11 where lambda gains 4 in a step, and to
# 1e-4 on a discrete schedule, where log alpha has kinks. The sum of the weights, which a constant eps sees, is exact.
_NODES, _WEIGHTS = ((1 + np.polynomial.legendre.leggauss(16)[0]) / 2, np.polynomial.legendre.leggauss(16)[1] / 2)


def deis(model, x, s, t, history):
    """Polynomials in t. The step to the data is DDIM's, for there d eps / dt is infinite on most schedules."""
    if isinf(t.lam - s.lam):
        return first_order(model, x, s, t)
    eps = [*history, (s, model.eps(x, s))]
    history.append(eps[-1])
    return _advance(x, s, t, eps, _weights_t(model.schedule, s, t, [p.t for p, _ in eps]))


def deis_rho(model, x, s, t, history):
    """Polynomials in rho, in which the data are a point like any other: the last step is of full order."""
    if s.alpha == 0:
        return first_order(model, x, s, t)
    eps = [*history, (s, model.eps(x, s))]
    history.append(eps[-1])
    return _advance(x, s, t, eps, _weights_rho(s, t, [p.sigma / p.alpha for p, _ in eps]))


for _k in range(4):
    solver(name=f"deis-{_k}", order=_k + 1, history=_k, source=f"Zhang & Chen 2023, DEIS, Eq. 14 and 15: tAB{_k}")(deis)
    solver(
        name=f"deis-rho-{_k}", order=_k + 1, history=_k, grid="karras", source=f"Zhang & Chen 2023, DEIS: rhoAB{_k}"
    )(deis_rho)


@solver(order=4, history=7, grid="karras", source="Katherine Crowson 2022, k-diffusion, sample_lms")
def lms(model, x, s, t, history, *, order=4):
    """The Adams-Bashforth method in rho for any grid. order: from 1 to 8; order 4 is `deis-rho-3`."""
    expect(isinstance(order, int) and 1 <= order <= 8, f"order must be a whole number from 1 to 8, got {order!r}")
    if s.alpha == 0:
        return first_order(model, x, s, t)
    eps = [*history, (s, model.eps(x, s))][-order:]
    history.append(eps[-1])
    return _advance(x, s, t, eps, _weights_rho(s, t, [p.sigma / p.alpha for p, _ in eps]))


def _advance(x, s, t, eps, weights):
    """y_t = y_s + sum of C_j eps_j (Eq. 14)."""
    return t.alpha * (x / s.alpha + sum(c * e for c, (_, e) in zip(weights, eps)))


def _weights_t(schedule, s, t, nodes):
    """Eq. 15, with d rho = -rho d lambda: t(lambda) is smooth also where rho(t) goes like sqrt(t)."""
    if len(nodes) == 1:
        return [t.sigma / t.alpha - s.sigma / s.alpha]
    lam = s.lam + (t.lam - s.lam) * _NODES
    return _integrals(nodes, schedule.t_of_lam(lam), (s.lam - t.lam) * np.exp(-lam) * _WEIGHTS)


def _weights_rho(s, t, nodes):
    rho, h = s.sigma / s.alpha, t.sigma / t.alpha - s.sigma / s.alpha
    return _integrals(nodes, rho + h * _NODES, h * _WEIGHTS)


def _integrals(nodes, u, d_rho):
    """Those of the Lagrange polynomials of the nodes: sums over the points u with the weights d_rho."""
    return [float(d_rho @ prod(((u - b) / (a - b) for b in nodes if b != a), start=np.ones_like(u))) for a in nodes]
