"""Pseudo linear multistep methods: Liu et al. 2022, Pseudo Numerical Methods for Diffusion Models on Manifolds (PNDM).

The slopes of a classical method for equal steps are combined as eps, and DDIM's update makes a step of the result. The
order is 2 whatever that of the classical method, for DDIM's update takes the mean of eps over the step, not the mean
over rho = sigma / alpha that the ODE dy / d rho = eps asks for; where steps in rho are equal it is the classical one.
"""

from __future__ import annotations

from math import isinf

from fastdiff.errors import expect
from fastdiff.solvers.exponential import exponential_step, first_order
from fastdiff.solvers.registry import solver

# Of equal steps, the newest slope first, for orders 1 to 4.
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)  # fmt: skip


@solver(order=2, history=3, source="Zhang & Chen 2023, DEIS, Appendix: iPNDM")
def ipndm(model, x, s, t, history, *, order=4):
    """One call a step from the first on: Adams-Bashforth of orders 1, 2, .. up to `order`, at most 4. The step to the
    data is DDIM's."""
    expect(isinstance(order, int) and 1 <= order <= 4, f"order must be a whole number from 1 to 4, got {order!r}")
    if isinf(t.lam - s.lam):
        return first_order(model, x, s, t)
    eps = model.eps(x, s)
    slopes = [eps, *reversed(history)][:order]
    history.append(eps)
    return _transfer(x, s, t, combined(slopes))


@solver(order=2, history=3, warm_up=1, grid="leading", source="Rombach et al. 2022, latent diffusion: PLMS")
def plms(model, x, s, t, history):
    """The first step is the trapezoidal rule, of two calls; then Adams-Bashforth of orders 2, 3, 4. The step to the
    data is DDIM's."""
    if isinf(t.lam - s.lam):
        return first_order(model, x, s, t)
    eps = model.eps(x, s)
    slopes = [eps, *reversed(history)]
    history.append(eps)
    if len(slopes) > 1:
        return _transfer(x, s, t, combined(slopes))
    return _transfer(x, s, t, (eps + model.eps(_transfer(x, s, t, eps), t)) / 2)


@solver(order=2, history=3, warm_up=9, grid="leading", source="Liu et al. 2022, PNDM, Algorithm 2: F-PNDM")
def pndm(model, x, s, t, history):
    """The first three steps are pseudo Runge-Kutta, of four calls each; then Adams-Bashforth of order 4. The step to
    the data is DDIM's."""
    if isinf(t.lam - s.lam):
        return first_order(model, x, s, t)
    eps = model.eps(x, s)
    slopes = [eps, *reversed(history)]
    history.append(eps)
    if len(slopes) > 3:
        return _transfer(x, s, t, combined(slopes))
    return _transfer(x, s, t, _pseudo_runge_kutta(model, x, s, t, eps))


def _transfer(x, s, t, eps):
    """DDIM's update (Eq. 11)."""
    return exponential_step(x, s, t, [eps], data=False)


def combined(slopes):
    """The Adams-Bashforth slope for the next of equal steps, from one to four slopes, the newest first."""
    return sum(c * eps for c, eps in zip(ADAMS_BASHFORTH[len(slopes) - 1], slopes))


def _pseudo_runge_kutta(model, x, s, t, e1):
    """Eq. 13, for the first steps."""
    middle = model.at((s.t + t.t) / 2)
    e2 = model.eps(_transfer(x, s, middle, e1), middle)
    e3 = model.eps(_transfer(x, s, middle, e2), middle)
    e4 = model.eps(_transfer(x, s, t, e3), t)
    return (e1 + 2 * e2 + 2 * e3 + e4) / 6
