"""Operator splitting for classifier guidance: Wizadwongsa & Suwajanakorn 2023, Accelerating Guided Diffusion Sampling
with Splitting Numerical Methods.

With y = x / alpha and rho = sigma / alpha, the guided ODE dy / d rho = eps(x) - sigma scale gradient(x) is the sum of
the model's term, which a linear multistep method integrates well, and the classifier's, which is stiff and gets Euler
steps.
"""

from __future__ import annotations

from math import log

from fastdiff.errors import expect
from fastdiff.solvers.pndm import combined
from fastdiff.solvers.registry import solver


@solver(order=2, history=3, grid="linspace", source="Wizadwongsa & Suwajanakorn 2023, Algorithm 2 (LTSP)")
def ltsp(model, x, s, t, history, *, order=2):
    """Lie-Trotter splitting: the classifier's step, then the model's, of `order` 1 to 4 where that many slopes are
    known.

    The slopes' weights are those of equal steps, which makes the model's part second order at most; the whole is of
    first order where there is a classifier.
    """
    y = x / s.alpha + _classifier_step(model, x, s, s.sigma, _ratio(t) - _ratio(s))
    return t.alpha * _model_step(model, y, s, t, history, order)


@solver(order=2, history=3, grid="linspace", source="Wizadwongsa & Suwajanakorn 2023, Algorithm 3 (STSP)")
def stsp(model, x, s, t, history, *, order=4):
    """Strang splitting: half a step of the classifier on both sides of the model's step, which is as in `ltsp`.

    The second half, as released, weighs the gradient at t with sigma of the middle of rho, which makes the whole first
    order where there is a classifier; to the data it takes the gradient at the time s.
    """
    half = (_ratio(t) - _ratio(s)) / 2
    middle = model.at_lam(-log(_ratio(s) + half))
    y = x / s.alpha + _classifier_step(model, x, s, s.sigma, half)
    x = t.alpha * _model_step(model, y, s, t, history, order)
    return x + t.alpha * _classifier_step(model, x, t if t.sigma > 0 else s, middle.sigma, half)


def _model_step(model, y, s, t, history, order):
    """Linear multistep in rho, y = x / alpha."""
    expect(order in (1, 2, 3, 4), f"order must be 1, 2, 3 or 4, got {order!r}")
    _, eps = model.x0_eps(s.alpha * y, s, classifier=False)
    slopes = [eps, *reversed(history)][:order]
    history.append(eps)
    return y + (_ratio(t) - _ratio(s)) * combined(slopes)


def _classifier_step(model, x, s, sigma, h):
    """The change of y over h in rho."""
    gradient = model.classifier_gradient(x, s)
    return 0 * x if gradient is None else -h * sigma * gradient


def _ratio(p):
    return p.sigma / p.alpha
