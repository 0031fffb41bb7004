"""DPM-Solver with step size control: pairs of orders 1 and 2, 2 and 3, whose difference estimates the error.

`step(model, x, s, end)` of an adaptive solver is a generator: of the state and its point after every attempt at a step,
unchanged where it was rejected. It runs on tensors (`fastdiff/engine/adaptive.py`). All samples of a batch take the
same steps, so that a sample depends, within the tolerance, on those that it is drawn with.
"""

from __future__ import annotations

from math import atan, inf, isnan

import torch
from numpy import float32

from fastdiff.arguments import tolerances
from fastdiff.errors import expect
from fastdiff.solvers.dpm_solver import advance, between, descend, evaluate
from fastdiff.solvers.registry import solver
from fastdiff.solvers.rk45 import positive

PAPER = "Lu et al. 2022, DPM-Solver, Section 3.3 and Appendix C"


@solver(order=2, evaluations=2, adaptive=True, grid="logsnr", source=PAPER)
def dpm_solver_12(
    model, x, s, end, *, rtol=0.05, atol=0.0078, h_init=0.05, theta=0.9, t_err=1e-5, variant="dpmsolver", max_steps=1000
):
    """Steps of order 2, and of order 1 for the estimate of the error, in eps.

    rtol, atol: the error of a step, its RMS over each sample in units of max(atol, rtol |x|), is kept below 1. h_init:
    the first step in lambda; theta: safety factor of the step size; t_err: how near to the end, in t, counts as being
    there. max_steps: how many attempts there may be, rejected ones included.
    """
    return _dpm(model, x, s, end, 2, rtol, atol, h_init, theta, t_err, variant, max_steps, data=False)


@solver(order=3, evaluations=3, adaptive=True, grid="logsnr", source=PAPER)
def dpm_solver_23(
    model, x, s, end, *, rtol=0.05, atol=0.0078, h_init=0.05, theta=0.9, t_err=1e-5, variant="dpmsolver", max_steps=1000
):
    """`dpm-solver-12` with steps of order 3, and of order 2 for the estimate."""
    return _dpm(model, x, s, end, 3, rtol, atol, h_init, theta, t_err, variant, max_steps, data=False)


@solver(order=2, evaluations=2, adaptive=True, grid="logsnr", source=PAPER + "; DPM-Solver++")
def dpmpp_12(
    model, x, s, end, *, rtol=0.05, atol=0.0078, h_init=0.05, theta=0.9, t_err=1e-5, variant="dpmsolver", max_steps=1000
):
    """`dpm-solver-12` in x0."""
    return _dpm(model, x, s, end, 2, rtol, atol, h_init, theta, t_err, variant, max_steps, data=True)


@solver(order=3, evaluations=3, adaptive=True, grid="logsnr", source=PAPER + "; DPM-Solver++")
def dpmpp_23(
    model, x, s, end, *, rtol=0.05, atol=0.0078, h_init=0.05, theta=0.9, t_err=1e-5, variant="dpmsolver", max_steps=1000
):
    """`dpm-solver-23` in x0."""
    return _dpm(model, x, s, end, 3, rtol, atol, h_init, theta, t_err, variant, max_steps, data=True)


def _dpm(model, x, s, end, order, rtol, atol, h_init, theta, t_err, variant, max_steps, data):
    _check_start(s)
    rtol, atol = tolerances(rtol, atol)
    h, lower_before, m = h_init, x, None
    for _ in range(max_steps):
        h = min(h, end.lam - s.lam)
        t = end if h == end.lam - s.lam else model.at_lam(s.lam + h)
        m, lower, higher = _pair(model, x, s, t, order, data, variant, m)
        error = _finite(_errors(lower, higher, lower_before, rtol, atol).max())
        if error <= 1:
            x, lower_before, m = higher, lower, None
            s = end if t.t - end.t <= t_err else t
        yield x, s
        if s == end:
            return
        growth = error ** (-1 / order) if error > 0 else inf
        h *= theta * float(float32(growth))  # rounded as in the authors' code, so that the steps are the same


@solver(order=3, evaluations=3, adaptive=True, grid="logsnr", source="k-diffusion, after Lu et al. 2022, DPM-Solver-23")
def dpm_adaptive(
    model,
    x,
    s,
    end,
    *,
    order=3,
    rtol=0.05,
    atol=0.0078,
    h_init=0.05,
    pcoeff=0.0,
    icoeff=1.0,
    dcoeff=0.0,
    accept_safety=0.81,
    eta=0.0,
    max_steps=1000,
    noise,
):
    """`dpm-solver-23`, or with order=2 `dpm-solver-12`, whose step sizes a PID controller sets.

    rtol, atol: of the error's RMS over the whole batch. pcoeff, icoeff, dcoeff: of the controller. accept_safety: a
    step is rejected whose successor would be shorter than that by comparison. eta: each step goes down to a lower
    noise, and noise is added; 0 is the ODE. max_steps: how many attempts there may be, rejected ones included.
    """
    expect(order in (2, 3), f"order must be 2 or 3, got {order!r}")
    _check_start(s)
    rtol, atol = tolerances(rtol, atol)
    h, lower_before, m = h_init, x, None
    control = _PID(pcoeff, icoeff, dcoeff, 1.5 if eta > 0 else order)
    for _ in range(max_steps):
        t = end if h >= end.lam - s.lam else model.at_lam(s.lam + h)
        down, up = descend(model, s, t, end, eta)
        m, lower, higher = _pair(model, x, s, down, order, False, "dpmsolver", m)
        error = _finite(_errors(lower, higher, lower_before, rtol, atol).square().mean().sqrt())
        factor = control.factor(error)
        if factor >= accept_safety:
            control.accept()
            x = t.alpha * (higher / down.alpha + up * noise()) if up > 0 else higher
            lower_before, m = lower, None
            s = end if end.lam - t.lam <= 1e-5 else t
        yield x, s
        if s == end:
            return
        h *= factor


class _PID:
    """Step sizes from the last three errors (Soderlind 2003, Digital Filters in Adaptive Time-Stepping; in the form of
    k-diffusion)."""

    def __init__(self, p, i, d, order):
        self.powers = (p + i + d) / order, -(p + 2 * d) / order, d / order
        self.inverse_errors = None

    def factor(self, error):
        """By what the step size changes, were the step with this error accepted or not."""
        inverse = 1 / (error + 1e-8)
        earlier = (inverse, inverse) if self.inverse_errors is None else self.inverse_errors[1:]
        self.inverse_errors = (inverse, *earlier)
        product = 1.0
        for value, power in zip(self.inverse_errors, self.powers):
            product *= value**power
        return 1 + atan(product - 1)

    def accept(self):
        """The last error becomes one of the earlier ones."""
        newest, last, _ = self.inverse_errors
        self.inverse_errors = (newest, newest, last)


def _pair(model, x, s, t, order, data, variant, m):
    """(the prediction at s, the state at t of the order below, that of this order); m: the prediction, if known."""
    nodes = between(model, s, t, order)
    outputs = evaluate(model, x, s, nodes, data, m)
    lower = advance(x, s, t, nodes[:-1], outputs[:-1], data, variant)
    return outputs[0], lower, advance(x, s, t, nodes, outputs, data, variant)


def _errors(lower, higher, before, rtol, atol):
    """(B,): the RMS of the difference over each sample, in units of the tolerance."""
    scale = positive((rtol * torch.maximum(lower.abs(), before.abs())).clamp(min=atol), atol)
    return ((higher - lower) / scale).flatten(1).square().mean(1).sqrt()


def _check_start(s):
    expect(s.alpha > 0, f"steps in lambda cannot start at t={s.t:g}, where alpha is 0; start later, or use rk45")


def _finite(error):
    error = float(error)
    if isnan(error):
        raise OverflowError("the state overflowed")
    return error
