"""The Runge-Kutta pair of orders 5 and 4 of Dormand & Prince 1980, with step size control: `rk45` on the
probability-flow ODE, and `dormand_prince` for any other."""

from __future__ import annotations

from math import inf, isfinite, isnan

import torch

from fastdiff.arguments import tolerances
from fastdiff.errors import expect
from fastdiff.solvers.registry import solver

# Dormand & Prince 1980, Table 2. The last row of A is also the weights of the solution; E: solution less embedded one.
C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@solver(
    order=5,
    evaluations=6,
    adaptive=True,
    grid="uniform",
    source="Dormand & Prince 1980; Song et al. 2021, Score SDE, 4.3",
)
def rk45(model, x, s, end, *, rtol=1e-5, atol=1e-5, max_steps=1000):
    """The probability-flow ODE in t. An attempt calls the model 6 times, and the first one once or twice more.

    rtol, atol: the error of a step, its RMS over the batch in units of atol + rtol |x|, is kept below 1. All samples of
    a batch take the same steps. max_steps: how many attempts there may be, rejected ones included.
    """

    def velocity(x, t):
        return model.velocity(x, model.at(t))

    for state, t in dormand_prince(velocity, x, s.t, end.t, rtol, atol, max_steps):
        yield state, model.at(t)


def dormand_prince(slope, y, t, end, rtol, atol, max_steps):
    """(y, t) after every attempt at a step of dy/dt = slope(y, t), unchanged where it was rejected; the last one is at
    `end`, unless max_steps were not enough. Step sizes: Hairer, Norsett & Wanner 1993, Section II.4."""
    rtol, atol = tolerances(rtol, atol)
    k = slope(y, t)
    h = _first_step(slope, y, t, k, end, rtol, atol)
    rejected = False
    for _ in range(max_steps):
        h = min(h, abs(end - t))
        t_new = end if h == abs(end - t) else t + (h if end > t else -h)
        slopes, y_new = [k], y
        for c, row in zip(C, A):
            y_new = y + sum((t_new - t) * a * k for a, k in zip(row, slopes))
            slopes.append(slope(y_new, t + c * (t_new - t) if c < 1 else t_new))
        scale = positive(atol + rtol * torch.maximum(y.abs(), y_new.abs()), atol)
        error = _rms(sum((t_new - t) * e * k for e, k in zip(E, slopes)) / scale)
        if isnan(error):
            raise OverflowError("the state overflowed")
        factor = 0.9 * error**-0.2 if error > 0 else inf
        if error < 1:
            y, t, k = y_new, t_new, slopes[-1]  # the last slope is the next step's first
            h *= min(factor, 1.0 if rejected else 10.0)
        else:
            h *= max(factor, 0.2)
        rejected = not error < 1
        yield y, t
        if t == end:
            return


def positive(scale, atol):
    """The errors that are allowed. Raises ValueError where one is 0, which no error is below."""
    good = atol > 0 or bool((scale != 0).all())
    expect(good, "atol must be positive here: the state holds zeros, of which rtol leaves no error")
    return scale


def _first_step(slope, y, t, k, end, rtol, atol):
    """Hairer, Norsett & Wanner 1993, Section II.4, "Starting Step Size"."""
    scale = positive(atol + rtol * y.abs(), atol)
    d0, d1 = _rms(y / scale), _rms(k / scale)
    if not isfinite(d0 + d1):
        raise OverflowError("the state overflowed")
    h0 = min(0.01 * d0 / d1 if d0 >= 1e-5 and d1 >= 1e-5 else 1e-6, abs(end - t))
    h0_signed = h0 if end > t else -h0
    d2 = _rms((slope(y + h0_signed * k, t + h0_signed) - k) / scale) / h0
    h1 = (0.01 / max(d1, d2)) ** (1 / 5) if max(d1, d2) > 1e-15 else max(1e-6, h0 * 1e-3)
    return min(100 * h0, h1)


def _rms(values):
    return float(values.square().mean().sqrt())
