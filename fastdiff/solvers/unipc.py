"""UniPC: Zhao et al. 2023, UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models."""

from __future__ import annotations

from math import expm1, factorial

import numpy as np

from fastdiff.errors import expect, one_of
from fastdiff.solvers.exponential import exponential_step, first_order
from fastdiff.solvers.phi import phi
from fastdiff.solvers.registry import solver

VARIANTS = ("bh1", "bh2", "vary_coeff", "vary_coeff_released")
SPACES = ("x0", "eps")


def unipc(model, x, s, t, history, *, variant="bh2", space="x0", lower_order_final=False):
    """One call a step: the model's output at the predicted state also corrects it, in every step but the last.

    `unipc-p` predicts with order p and corrects to order p + 1. A run starts with a predictor of order 1, whose one
    corrected step is of third order.

    variant: "bh1" and "bh2" take B(h) / 2, B(h) = h or e^h - 1, for the weight of a single difference; "vary_coeff"
    solves for it as for several. "vary_coeff_released" is the authors' code under that name, whose corrector takes
    other rows of the matrix and is of first order. space: the prediction that is integrated, "x0" or "eps".
    lower_order_final: the orders of the last steps before the data are 2 and 1. A step to the data is of first order.
    """
    one_of("variant", variant, VARIANTS)
    one_of("space", space, SPACES)
    expect(isinstance(lower_order_final, bool), f"lower_order_final must be True or False, got {lower_order_final!r}")
    if s.alpha == 0:
        return first_order(model, x, s, t)
    data = space == "x0"
    m = model.x0(x, s) if data else model.eps(x, s)
    # How many points of the history may be looked at.
    limit = model.noisy_steps_left if lower_order_final else model.steps
    if history:  # x, from the predictor of the last step, becomes what its corrector gives
        past = [*reversed(history)][: limit + 1]
        x = x + _residual([*past[1:], (s, m)], past[0], s, data, variant, corrector=True)
        x = x - _residual(past[1:], past[0], s, data, variant)
    history.append((s, m))
    past = [*reversed(history)][:limit]
    if t.sigma == 0:
        return t.alpha * m if data else t.alpha / s.alpha * (x - s.sigma * m)
    return exponential_step(x, s, t, [m], data) + _residual(past[1:], past[0], t, data, variant)


for _p in (1, 2, 3):
    solver(name=f"unipc-{_p}", order=_p + 1, history=_p, grid="logsnr", source="Zhao et al. 2023, UniPC")(unipc)


def _residual(others, start, t, data, variant, corrector=False):
    """What a step from start to t adds to its first-order form: B(h) sum of a_k D_k / r_k, D_k = m_k - m_start (Eq. 3).
    others: the (point, m) beside the start's."""
    if not others:
        return 0
    s, m = start
    h = t.lam - s.lam
    r = [(p.lam - s.lam) / h for p, _ in others]
    weights = _weights(r, -h if data else h, variant, corrector)
    scale = -t.alpha if data else -t.sigma
    return sum(float(scale * w / r_k) * (m_k - m) for w, r_k, (_, m_k) in zip(weights, r, others))


def _weights(r, h, variant, corrector):
    """B(h) a_k, from sum over k of r_k^n B(h) a_k = (n + 1)! h phi_n+2(h), n = 0 .. K - 1 (Theorem 3.1)."""
    size = range(len(r))
    if len(r) == 1 and variant in ("bh1", "bh2"):
        return [(h if variant == "bh1" else expm1(h)) / 2]
    a = np.linalg.inv([[r_k**n / factorial(n + 1) for n in size] for r_k in r])  # derivatives of m from differences
    g = np.array([h * phi(n + 2, h) for n in size])
    if not corrector or variant != "vary_coeff_released":
        return g @ a
    weights = g[:-1] @ a[:-1]
    weights[-1] = g[-1] * a[max(0, len(r) - 2), -1]
    return weights
