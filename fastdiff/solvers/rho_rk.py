"""rhoRK-DEIS: Zhang & Chen 2023, Fast Sampling of Diffusion Models with Exponential Integrator, Section 4.

Explicit Runge-Kutta methods for dy / d rho = eps, with y = x / alpha and rho = sigma / alpha. `rho-2heun` is `heun`.
"""

from __future__ import annotations

from math import isinf, log

from fastdiff.solvers.exponential import first_order
from fastdiff.solvers.registry import solver

# name: (order, rows of a from the second stage on, b); c is the sum of a row.
TABLEAUS = {
    "2heun": (2, ((1.0,),), (1 / 2, 1 / 2)),
    "3kutta": (3, ((1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6)),
    "3heun": (3, ((1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4)),
    "3ral": (3, ((1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9)),  # Ralston
    "3ssprk": (3, ((1.0,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3)),  # strong-stability preserving
    "4rk": (4, ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


def _runge_kutta(a, b):
    rows = [(sum(row), row) for row in a]

    def step(model, x, s, t, history):
        if isinf(t.lam - s.lam):  # the slope is not known at the data, nor y at alpha = 0
            return first_order(model, x, s, t)
        y, rho, h = x / s.alpha, s.sigma / s.alpha, t.sigma / t.alpha - s.sigma / s.alpha
        k = [model.eps(x, s)]
        points = {c: t if c == 1 else model.at_lam(-log(rho + c * h)) for c, _ in rows}
        for c, row in rows:
            p = points[c]
            k.append(model.eps(p.alpha * (y + _sum(row, k, h)), p))
        return t.alpha * (y + _sum(b, k, h))

    return step


def _sum(weights, k, h):
    return sum(h * w * slope for w, slope in zip(weights, k) if w != 0)


for _name, (_order, _a, _b) in TABLEAUS.items():
    solver(
        name=f"rho-{_name}", order=_order, evaluations=len(_b), grid="karras", source="Zhang & Chen 2023, DEIS: rhoRK"
    )(_runge_kutta(_a, _b))
