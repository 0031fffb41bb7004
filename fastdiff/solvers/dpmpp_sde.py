"""The stochastic forms of DPM-Solver++ (Lu et al. 2022), multistep and, as in k-diffusion, of two stages.

eta scales the noise: 0 is the ODE's solver, 1 the SDE's.
"""

from __future__ import annotations

from math import exp, expm1, inf, log, sqrt

from fastdiff.errors import unknown
from fastdiff.solvers.euler import ancestral_split
from fastdiff.solvers.exponential import backward_derivatives, integral
from fastdiff.solvers.registry import solver


@solver(order=2, history=1, grid="karras", source="Lu et al. 2022, SDE-DPM-Solver++(2M); heun: k-diffusion")
def dpmpp_2m_sde(model, x, s, t, history, *, eta=1.0, correction="midpoint", noise):
    """Second-order multistep. The first step, and the last one to the data, are of first order.

    correction: how the difference of the last two x0 enters, "midpoint" or "heun".
    """
    if correction not in ("midpoint", "heun"):
        raise unknown("correction", correction, ("midpoint", "heun"))
    m = model.x0(x, s)
    if t.sigma == 0:
        return m
    h = t.lam - s.lam
    decay = -expm1(-(1 + eta) * h)
    y = (t.sigma / s.sigma) * exp(-eta * h) * x + t.alpha * decay * m
    if history:
        before, m_before = history[-1]
        slope = h / (s.lam - before.lam) * (m - m_before)
        weights = {"midpoint": decay / 2, "heun": 1 - decay / ((1 + eta) * h)}
        y = y + t.alpha * weights[correction] * slope
    history.append((s, m))
    return y + t.sigma * sqrt(-expm1(-2 * eta * h)) * noise() if eta > 0 else y


@solver(order=2, history=2, grid="karras", source="k-diffusion, after Lu et al. 2022, SDE-DPM-Solver++")
def dpmpp_3m_sde(model, x, s, t, history, *, eta=1.0, second_derivative=0.5, noise):
    """Multistep with the second derivative of two earlier steps. The last step, to the data, is of first order.

    second_derivative: what counts of it: k-diffusion takes one half of what the Taylor series has, which leaves the
    order at 2; with 1.0 it is 3.
    """
    m = model.x0(x, s)
    if t.sigma == 0:
        return m
    h = t.lam - s.lam
    z = -(1 + eta) * h
    derivatives = [m, *backward_derivatives(s, m, history, h)]
    if len(derivatives) == 3:
        derivatives[2] = second_derivative * derivatives[2]
    history.append((s, m))
    y = (t.sigma / s.sigma) * exp(-eta * h) * x - t.alpha * integral(derivatives, z)
    return y + t.sigma * sqrt(-expm1(-2 * eta * h)) * noise() if eta > 0 else y


@solver(
    order=2, evaluations=2, grid="karras", source="Lu et al. 2022, DPM-Solver++, Algorithm 1, with eta; k-diffusion"
)
def dpmpp_2s_ancestral(model, x, s, t, history, *, eta=1.0, noise):
    """Second-order single-step down to a lower noise than that of t, then noise up to it."""
    down, up = ancestral_split(s, t, eta)
    m = model.x0(x, s)
    if down > 0:
        h = -log(down) - s.lam
        middle = model.at_lam(s.lam + h / 2)
        m = model.x0(_first_order(x, m, s, middle, middle.lam), middle)
    y = _first_order(x, m, s, t, -log(down) if down > 0 else inf)
    return y + t.alpha * up * noise() if up > 0 else y


@solver(
    order=2, evaluations=2, grid="karras", source="Lu et al. 2022, DPM-Solver++, Algorithm 1, as an SDE; k-diffusion"
)
def dpmpp_sde(model, x, s, t, history, *, eta=1.0, r=0.5, correlated=True, noise):
    """Two stages, each down to a lower noise and up again; r is the position of the second in lambda.

    correlated: the noises of both stages are increments of one Brownian path in sigma / alpha, as k-diffusion's are
    unless it is told otherwise. With independent ones the order is 1 in distribution.
    """
    m = model.x0(x, s)
    if t.sigma == 0:
        return m
    middle = model.at_lam(s.lam + r * (t.lam - s.lam))
    down, up = ancestral_split(s, middle, eta)
    u = _first_order(x, m, s, middle, -log(down))
    if eta > 0:
        z1, z2 = noise(), noise()
        u = u + middle.alpha * up * z1
        if correlated:
            rho, rho_middle, rho_t = (p.sigma / p.alpha for p in (s, middle, t))
            share = (rho - rho_middle) / (rho - rho_t)
            z2 = sqrt(share) * z1 + sqrt(1 - share) * z2
    m_middle = model.x0(u, middle)
    down, up = ancestral_split(s, t, eta)
    y = _first_order(x, m + (m_middle - m) / (2 * r), s, t, -log(down))
    return y + t.alpha * up * z2 if eta > 0 else y


def _first_order(x, m, s, t, lam):
    """From s with a constant x0 = m to the noise ratio exp(-lam), in the scale of t (Lu et al. 2022, Eq. 9)."""
    ratio = exp(-lam) * t.alpha / s.sigma
    return ratio * x + t.alpha * -expm1(s.lam - lam) * m
