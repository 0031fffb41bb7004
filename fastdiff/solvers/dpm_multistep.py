"""Multistep DPM-Solver and DPM-Solver++ (Lu et al. 2022): derivatives in lambda come from the steps before.

DPM-Solver++(2M) is in `dpmpp`. lower_order_final: the last steps before the data are of decreasing order, 2 and 1, as
the authors have it for less than 10 steps. The first steps are of increasing order, as the history fills.
"""

from __future__ import annotations

from math import isinf

from fastdiff.solvers.exponential import backward_derivatives, exponential_step, first_order, slope_weight
from fastdiff.solvers.registry import solver

CODE = "Lu et al. 2022, DPM-Solver++, released code"


@solver(order=2, history=1, grid="logsnr", source=CODE)
def dpm_solver_2m(model, x, s, t, history, *, variant="dpmsolver", lower_order_final=False):
    """Second-order multistep in eps."""
    return _multistep(model, x, s, t, history, 2, variant, None, lower_order_final, data=False)


@solver(order=2, history=2, grid="logsnr", source=CODE)
def dpm_solver_3m(model, x, s, t, history, *, variant="dpmsolver", second_derivative=0.5, lower_order_final=False):
    """Multistep in eps with the second derivative of two earlier steps.

    The authors' code takes one half of what the Taylor series has of it, which leaves the order at 2; with
    second_derivative=1.0 it is 3. Half is the better one for few steps. variant: for the steps of order 2.
    """
    return _multistep(model, x, s, t, history, 3, variant, second_derivative, lower_order_final, data=False)


@solver(order=2, history=2, grid="logsnr", source=CODE)
def dpmpp_3m(model, x, s, t, history, *, variant="dpmsolver", second_derivative=0.5, lower_order_final=False):
    """`dpm-solver-3m` in x0."""
    return _multistep(model, x, s, t, history, 3, variant, second_derivative, lower_order_final, data=True)


def _multistep(model, x, s, t, history, order, variant, second_derivative, lower_order_final, data):
    h = t.lam - s.lam
    if isinf(h):
        return first_order(model, x, s, t)
    m = model.x0(x, s) if data else model.eps(x, s)
    if lower_order_final:
        order = min(order, model.noisy_steps_left)
    earlier = list(history)[-(order - 1) :] if order > 1 else []
    derivatives = [m, *backward_derivatives(s, m, earlier, h)]
    if len(derivatives) == 2:
        weight = slope_weight(variant, -h if data else h)
        derivatives = [m + weight * derivatives[1]]
    elif len(derivatives) == 3:
        derivatives[2] = second_derivative * derivatives[2]
    history.append((s, m))
    return exponential_step(x, s, t, derivatives, data)
