"""Single-step DPM-Solver and DPM-Solver++: Lu et al. 2022, a Fast ODE Solver for Diffusion Probabilistic Model Sampling
in Around 10 Steps, and Fast Solver for Guided Sampling of Diffusion Probabilistic Models.

The first predicts eps, the second ("pp") x0. Steps of order 2 and 3 call the model at points between s and t as well.
"""

from __future__ import annotations

from math import isinf, log, sqrt

from fastdiff.errors import expect, unknown
from fastdiff.process.grids import fast_orders
from fastdiff.solvers.euler import ancestral_split
from fastdiff.solvers.exponential import exponential_step, first_order, slope_weight
from fastdiff.solvers.registry import solver

# ---- one step of any order ------------------------------------------------------------------------------------------


def evaluate(model, x, s, nodes, data, m=None):
    """The predictions at s (m, if it is known) and at the nodes between s and t, each reached by those before it."""
    predict = model.x0 if data else model.eps
    outputs = [predict(x, s) if m is None else m]
    for k, node in enumerate(nodes):
        outputs.append(predict(advance(x, s, node, nodes[:k], outputs, data, "taylor"), node))
    return outputs


def advance(x, s, t, nodes, outputs, data, variant):
    """The state at t from the predictions at s and at no, one or two nodes, a step of order 1, 2 or 3.

    DPM-Solver, Eq. 3.7, Algorithms 1 and 2; DPM-Solver++, Algorithm 1; "taylor" and order 3 in x0: their code.
    """
    h = t.lam - s.lam
    weight = slope_weight(variant, -h if data else h)
    m, *later = outputs
    r = [(node.lam - s.lam) / h for node in nodes]
    slopes = [(output - m) / r_k for output, r_k in zip(later, r)]  # each is h dm/dlambda, in first order
    if not slopes:
        derivatives = [m]
    elif len(slopes) == 1:
        derivatives = [m + weight * slopes[0]]
    elif variant == "dpmsolver":
        derivatives = [m, slopes[1]]
    else:
        curve = (slopes[1] - slopes[0]) / (r[1] - r[0])
        derivatives = [m, slopes[0] - r[0] * curve, 2 * curve]
    return exponential_step(x, s, t, derivatives, data)


def between(model, s, t, order):
    """The nodes of a step of that order, equally spaced in lambda."""
    return [model.at_lam(s.lam + k / order * (t.lam - s.lam)) for k in range(1, order)]


# ---- steps of one order ---------------------------------------------------------------------------------------------


def _spans(order):
    """A step takes one interval of the grid, or `order` of them where its nodes are the grid's."""

    def spans(count, to_data, *, nodes, **_):
        if nodes not in ("lambda", "grid"):
            raise unknown("nodes", nodes, ("lambda", "grid"))
        if nodes == "lambda":
            return [1] * count
        steps, rest = divmod(count - to_data, order)
        expect(rest == 0, f"with nodes='grid' a step takes {order} intervals, and the grid has {count - to_data}")
        return [order] * steps + [1] * to_data

    return spans


def _single_step(model, x, s, t, order, nodes, variant, data):
    if isinf(t.lam - s.lam):
        return first_order(model, x, s, t)
    inner = model.inner if nodes == "grid" else between(model, s, t, order)
    return advance(x, s, t, inner, evaluate(model, x, s, inner, data), data, variant)


@solver(order=1, grid="logsnr", source="Lu et al. 2022, DPM-Solver, Eq. 3.7")
def dpm_solver_1(model, x, s, t, history):
    """DPM-Solver of order 1, which is also DPM-Solver++ of order 1 and DDIM."""
    return first_order(model, x, s, t)


@solver(order=2, evaluations=2, grid="logsnr", spans=_spans(2), source="Lu et al. 2022, DPM-Solver, Algorithm 1")
def dpm_solver_2(model, x, s, t, history, *, variant="dpmsolver", nodes="lambda"):
    """The eps-prediction also at a node between s and t: half-way in lambda, or with nodes="grid" the next point of the
    grid, a step taking two intervals. A step to the data is of first order."""
    return _single_step(model, x, s, t, 2, nodes, variant, data=False)


@solver(order=3, evaluations=3, grid="logsnr", spans=_spans(3), source="Lu et al. 2022, DPM-Solver, Algorithm 2")
def dpm_solver_3(model, x, s, t, history, *, variant="dpmsolver", nodes="lambda"):
    """The same with two nodes, in the thirds of lambda, or with nodes="grid" a step taking three intervals."""
    return _single_step(model, x, s, t, 3, nodes, variant, data=False)


@solver(order=2, evaluations=2, grid="logsnr", spans=_spans(2), source="Lu et al. 2022, DPM-Solver++, Algorithm 1")
def dpmpp_2s(model, x, s, t, history, *, variant="dpmsolver", nodes="lambda"):
    """`dpm-solver-2` with the prediction of x0."""
    return _single_step(model, x, s, t, 2, nodes, variant, data=True)


@solver(order=3, evaluations=3, grid="logsnr", spans=_spans(3), source="Lu et al. 2022, DPM-Solver++, released code")
def dpmpp_3s(model, x, s, t, history, *, variant="dpmsolver", nodes="lambda"):
    """`dpm-solver-3` with the prediction of x0."""
    return _single_step(model, x, s, t, 3, nodes, variant, data=True)


# ---- a number of model calls, divided into steps of decreasing order ------------------------------------------------


def _fast_spans(count, to_data, *, order, **_):
    return fast_orders(count - to_data, order) + [1] * to_data


def _fast(model, x, s, t, eta, variant, data, noise):
    """A step whose nodes are the grid's."""
    h = t.lam - s.lam
    if isinf(h):
        return first_order(model, x, s, t)
    end = next(p for p in reversed(model.grid) if p.sigma > 0)
    down, up = descend(model, s, t, end, eta)
    nodes = [p if down is t else model.at_lam(s.lam + (p.lam - s.lam) / h * (down.lam - s.lam)) for p in model.inner]
    y = advance(x, s, down, nodes, evaluate(model, x, s, nodes, data), data, variant)
    return t.alpha * (y / down.alpha + up * noise()) if up > 0 else y


def descend(model, s, t, end, eta):
    """(the point to go down to, the standard deviation of the noise that then leads up to t, in x / alpha), as in
    k-diffusion: an ancestral step, but not below the noise of the run's end."""
    ratio = max(ancestral_split(s, t, eta)[0], end.sigma / end.alpha)
    up = (t.sigma / t.alpha) ** 2 - ratio**2
    return (model.at_lam(-log(ratio)), sqrt(up)) if eta > 0 and up > 0 else (t, 0.0)


@solver(
    order=2, grid="fast", spans=_fast_spans, source="Lu et al. 2022, DPM-Solver-fast, Section 3.3; eta: k-diffusion"
)
def dpm_fast(model, x, s, t, history, *, order=3, variant="dpmsolver", eta=0.0, noise):
    """As many model calls as the grid has intervals: steps of `order` (3 or 2), the last ones of lower order.

    The nodes of a step are the grid's; those of the grid "fast" are the paper's. In the limit of many calls the last
    step, of order 1 or 2, decides on the order of the error.
    """
    return _fast(model, x, s, t, eta, variant, False, noise)


@solver(order=2, grid="fast", spans=_fast_spans, source="Lu et al. 2022, DPM-Solver++, released code; eta: k-diffusion")
def dpmpp_fast(model, x, s, t, history, *, order=3, variant="dpmsolver", eta=0.0, noise):
    """`dpm-fast` with the prediction of x0."""
    return _fast(model, x, s, t, eta, variant, True, noise)
