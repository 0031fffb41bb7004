"""Exponential Runge-Kutta methods in lambda = log(alpha / sigma) for the data prediction.

With u = x / alpha the probability-flow ODE is du / d lambda = -u + x0(u, lambda). The linear part is solved exactly;
the stages u_i at lambda_s + c_i h and the result (c = 1) are

    u_i = e^(-c_i h) u + h sum over j of a_ij x0_j,    a_ij a sum of phi_k(-c h)

(Hochbruck & Ostermann 2010, Exponential Integrators, Eq. 2.34). The first column follows from the others, as a row's
sum is c_i phi_1(-c_i h).
"""

from __future__ import annotations

from math import isinf

from fastdiff.solvers.exponential import exponential_step, first_order
from fastdiff.solvers.phi import phi
from fastdiff.solvers.registry import solver

# A row: c_i and {j: {k: weight of phi_k(-c_i h)}} from the second stage j on; {(k, c): weight} is of phi_k(-c h).
ETD_RK2 = ((1 / 2, {}), (1, {2: {2: 2}}))
ETD_RK3 = ((1 / 3, {}), (2 / 3, {2: {2: 4 / 3}}), (1, {3: {2: 3 / 2}}))
RES_3 = ((1 / 2, {}), (1, {2: {(2, 1 / 2): 2, 2: 2}}), (1, {2: {2: 4 / 3}, 3: {2: 1 / 3}}))
KROGSTAD = (
    (1 / 2, {}),
    (1 / 2, {2: {2: 1}}),
    (1, {3: {2: 2}}),
    (1, {2: {2: 2, 3: -4}, 3: {2: 2, 3: -4}, 4: {2: -1, 3: 4}}),
)
_A52 = {2: 1 / 2, 3: -1 / 2, (2, 1): 1 / 4, (3, 1): -1}
_A54 = {2: 1 / 4 - 1 / 2, 3: 1 / 2, (2, 1): -1 / 4, (3, 1): 1}
HOCHBRUCK_OSTERMANN = (
    (1 / 2, {}),
    (1 / 2, {2: {2: 1}}),
    (1, {2: {2: 1}, 3: {2: 1}}),
    (1 / 2, {2: _A52, 3: _A52, 4: _A54}),
    (1, {4: {2: -1, 3: 4}, 5: {2: 4, 3: -8}}),
)


def _exponential_rk(rows):
    def step(model, x, s, t, history):
        h = t.lam - s.lam
        if isinf(h):
            return first_order(model, x, s, t)
        m = []
        point, state = s, x
        for c, row in rows:
            m.append(model.x0(state, point))
            point = t if c == 1 else model.at_lam(s.lam + c * h)
            state = exponential_step(x, s, point, m[:1], data=True)
            for j, weights in row.items():
                state = state + point.alpha * h * _sum(weights, c, h) * (m[j - 1] - m[0])
        return state

    return step


def _sum(weights, c, h):
    keys = ((*key, w) if isinstance(key, tuple) else (key, c, w) for key, w in weights.items())
    return sum(w * phi(k, -c * h) for k, c, w in keys)


for _name, _order, _rows, _source in (
    ("exp-rk-2", 2, ETD_RK2, "Hochbruck & Ostermann 2010, Exponential Integrators, Eq. 2.40: stiff order 2"),
    ("exp-rk-3", 3, ETD_RK3, "Hochbruck & Ostermann 2005, Eq. 5.8: stiff order 3"),
    ("res-3", 3, RES_3, "Zhang et al. 2023, RES; Hochbruck & Ostermann 2005, Eq. 5.9: stiff order 3"),
    ("exp-rk-4", 4, KROGSTAD, "Krogstad 2005; Hochbruck & Ostermann 2005, Eq. 5.18: stiff order 3"),
    ("exp-rk-4-stiff", 4, HOCHBRUCK_OSTERMANN, "Hochbruck & Ostermann 2005, Eq. 5.19: stiff order 4"),
):
    solver(name=_name, order=_order, evaluations=len(_rows), grid="logsnr", source=_source)(_exponential_rk(_rows))
