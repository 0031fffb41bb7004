"""Exponential Runge-Kutta methods in lambda = log(alpha / sigma) for the data prediction.

With u = x / alpha the probability-flow ODE is du / d lambda = -u + x0(u, lambda). The linear part is solved exactly;
the stages u_i at lambda_s + c_i h and the result (c = 1) are

    u_i = e^(-c_i h) u + h sum over j of a_ij x0_j,    a_ij a sum of phi_k(-c h)

(Hochbruck & Ostermann 2010, Exponential Integrators, Section 2.3). The first column follows from the others, as a row's
sum is c_i phi_1(-c_i h). The orders in the table hold for this ODE. Were the linear part stiff, `exp-rk-4` would be of
order 3 (Hochbruck & Ostermann 2005, Explicit Exponential Runge-Kutta Methods), the others of the same.
`exp-rk-2` and `exp-rk-3` are the single-step DPM-Solver++ with the integrals of its Taylor series: `dpmpp-2s` with
variant="taylor" and `dpmpp-3s`.
"""

from __future__ import annotations

from math import expm1, isinf

from fastdiff.solvers.exponential import first_order
from fastdiff.solvers.phi import phi
from fastdiff.solvers.registry import solver

# A row: c_i and {j: {k: weight of phi_k(-c_i h)}} from the second stage j on; {(k, c): weight} is of phi_k(-c h).
Rows = tuple[tuple[float, dict[int, dict[int | tuple[int, float], float]]], ...]
ETD_RK2: Rows = ((1 / 2, {}), (1, {2: {2: 2}}))
ETD_RK3: Rows = ((1 / 3, {}), (2 / 3, {2: {2: 4 / 3}}), (1, {3: {2: 3 / 2}}))
RES_3: Rows = ((1 / 2, {}), (1, {2: {(2, 1 / 2): 2, 2: 2}}), (1, {2: {2: 4 / 3}, 3: {2: 1 / 3}}))
KROGSTAD: Rows = (
    (1 / 2, {}),
    (1 / 2, {2: {2: 1}}),
    (1, {3: {2: 2}}),
    (1, {2: {2: 2, 3: -4}, 3: {2: 2, 3: -4}, 4: {2: -1, 3: 4}}),
)


def _exponential_rk(rows):
    def step(model, x, s, t, history):
        h = t.lam - s.lam
        if isinf(h):
            return first_order(model, x, s, t)
        points = {c: t if c == 1 else model.at_lam(s.lam + c * h) for c, _ in rows}
        m, p, state = [], s, x
        for c, row in rows:
            m.append(model.x0(state, p))
            a = {j: h * _sum(weights, c, h) for j, weights in row.items()}
            a[1] = -expm1(-c * h) - sum(a.values())
            p = points[c]
            state = p.sigma / s.sigma * x + sum(p.alpha * a_j * m[j - 1] for j, a_j in a.items())
        return state

    return step


def _sum(weights, c, h):
    """The sum of phi_k(-c h)."""
    keys = ((*key, w) if isinstance(key, tuple) else (key, c, w) for key, w in weights.items())
    return sum(w * phi(k, -c * h) for k, c, w in keys)


for _name, _order, _rows, _source in (
    ("exp-rk-2", 2, ETD_RK2, "Hochbruck & Ostermann 2010, ETD-RK2, c = 0, 1/2"),
    ("exp-rk-3", 3, ETD_RK3, "Hochbruck & Ostermann 2005, third order, c = 0, 1/3, 2/3"),
    ("res-3", 3, RES_3, "Zhang et al. 2023, RES, c = 0, 1/2, 1"),
    ("exp-rk-4", 4, KROGSTAD, "Krogstad 2005, ETDRK4-B"),
):
    solver(name=_name, order=_order, evaluations=len(_rows), grid="logsnr", source=_source)(_exponential_rk(_rows))
