"""DPS: a Gaussian's steps by hand, one call of the network each, gradients under every backend, bad input."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from small_network import Net

import fastdiff
from fastdiff import SamplingError
from fastdiff.editing import dps
from fastdiff.editing.operators import (
    AveragePooling,
    Blurring,
    Masking,
    Resizing,
    adjoint_of,
    check_adjoint,
    gaussian_kernel,
)
from fastdiff.schedules import VPDiscrete
from fastdiff.solvers import SOLVERS

SCHEDULE = VPDiscrete.linear()
TIMES = np.array([1.0, 0.8, 0.6, 0.4, 0.2, 0.05, 0.0])
COMMON = dict(schedule=SCHEDULE, prediction="eps", grid=TIMES, seed=4)
LIKE = torch.zeros(2, 3, 4, 6, dtype=torch.float64)
MEAN, STD = 0.3, 0.7


def gaussian_eps(x, t):
    """Of data N(MEAN, STD^2)."""
    p = SCHEDULE.point((float(t[0]) + 1) / 1000)
    return p.sigma * (x - p.alpha * MEAN) / (p.alpha**2 * STD**2 + p.sigma**2)


def by_hand(x, y, mask, scale):
    """DDIM with x := x - scale d/dx |y - mask x0|, whose derivative is known: d x0 / dx = alpha STD^2 / v."""
    points = SCHEDULE.points(TIMES)
    for s, t in pairwise(points):
        v = s.alpha**2 * STD**2 + s.sigma**2
        x0 = MEAN + s.alpha * STD**2 / v * (x - s.alpha * MEAN)
        residual = y - mask * x0
        length = residual.flatten(1).norm(dim=1)[:, None, None, None]
        step = t.alpha * x0 + t.sigma * (x - s.alpha * x0) / s.sigma
        x = step + scale * s.alpha * STD**2 / v * mask * residual / length
    return x


def test_a_gaussian_by_hand():
    mask = (torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) > 0.5).double()
    y = mask * torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 6).expand(LIKE.shape)
    x = torch.randn(LIKE.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = dps(gaussian_eps, y, Masking(mask), LIKE, scale=0.8, solver="ddim", x_init=x, **COMMON)
    assert torch.allclose(found, by_hand(x, y, mask, 0.8), atol=1e-12)


def test_the_measurement_is_met_better_with_a_larger_scale():
    generator = torch.Generator().manual_seed(5)
    y = AveragePooling(2)(MEAN + STD * torch.randn(LIKE.shape, dtype=torch.float64, generator=generator))
    errors = []
    for scale in (0.0, 0.3, 1.0):
        x = dps(gaussian_eps, y, AveragePooling(2), LIKE, scale=scale, solver="ddpm", steps=50, seed=3,
                schedule=SCHEDULE, prediction="eps")  # fmt: skip
        errors.append(float((y - AveragePooling(2)(x)).norm()))
    assert errors[0] > 1.2 * errors[1] > 1.44 * errors[2]


def test_of_a_gaussian_it_finds_the_posterior_in_the_solvers_order():
    """With the exact likelihood p(y | x), of variance noise^2 + Var[x0 | x], the guided ODE takes the mean of the noisy
    law to the mean of p(x0 | y), and a standard deviation to one; the error of DDIM, of order 1, halves."""
    noise, y = 0.5, torch.linspace(-1, 1, LIKE.numel(), dtype=torch.float64).reshape(LIKE.shape)
    mean = MEAN + STD**2 / (STD**2 + noise**2) * (y - MEAN)
    std, first = STD * noise / math.hypot(STD, noise), SCHEDULE.point(0.8)

    def scale(s, t):
        rest = STD**2 * s.sigma**2 / (s.alpha**2 * STD**2 + s.sigma**2)
        return (t.alpha * s.sigma**2 / s.alpha - t.sigma * s.sigma) / (noise**2 + rest)

    def found(steps, deviations):
        times = np.append(np.linspace(0.8, 1e-3, steps), 0.0)
        x = first.alpha * mean + deviations * math.hypot(first.alpha * std, first.sigma)
        common = dict(solver="ddim", schedule=SCHEDULE, prediction="eps", grid=times, x_init=x)
        return dps(gaussian_eps, y, lambda x: x, LIKE, scale=scale, measurement="squares", **common)

    assert torch.allclose(found(20, 0.0), mean, atol=1e-12)
    errors = [float((found(steps, 1.3) - mean - 1.3 * std).abs().max()) for steps in (100, 200, 400)]
    assert errors[2] < 0.01
    orders = [math.log2(errors[k] / errors[k + 1]) for k in range(2)]
    assert all(abs(order - 1) < 0.15 for order in orders), (errors, orders)


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "heun", "dpmpp-2m"])
def test_the_network_is_called_once_for_both(solver):
    calls = []

    def counted(x, t):
        calls.append(float(t[0]))
        return gaussian_eps(x, t)

    dps(counted, LIKE, lambda x: x, LIKE, scale=0.1, solver=solver, **COMMON)
    plain = fastdiff.trace(solver, SCHEDULE, TIMES, "eps")
    assert calls == pytest.approx([call.model_time for call in plain.calls])


@pytest.mark.parametrize("solver", [name for name, each in SOLVERS.items() if not each.adaptive])
def test_with_no_gradient_it_is_the_solver(solver):
    if solver in ("consistency", "flow-euler", "flow-heun") or SOLVERS[solver].spans is not None:
        pytest.skip("needs a grid or a schedule of its own")
    x = torch.randn(LIKE.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    common = {**COMMON, "grid": np.linspace(1.0, 0.02, 30)}
    found = dps(gaussian_eps, LIKE, lambda x: x, LIKE, scale=0.0, solver=solver, x_init=x, **common)
    expected = fastdiff.sample(gaussian_eps, x, solver=solver, **common)
    assert (found - expected).abs().max() <= 1e-9 * expected.square().mean().sqrt()


def test_gradients_respect_use():
    """In every backend, through a model with guidance and a limit."""
    net, like = Net(), torch.zeros(2, 3, 8, 8)
    cond, uncond = {"shift": torch.tensor([0.1, 0.2])}, {"shift": torch.zeros(2)}
    results = []
    for backend in ("auto", "reference", "cpu"):
        with fastdiff.use(backend):
            results.append(
                dps(net, torch.full((2, 3, 4, 4), 0.5), AveragePooling(2), like, guidance=2.0, threshold=1.0,
                    cond=cond, uncond=uncond, **COMMON)
            )  # fmt: skip
    assert torch.allclose(results[0], results[1], atol=1e-5)
    assert torch.allclose(results[0], results[2], atol=1e-5)
    assert not any(parameter.grad is not None for parameter in net.parameters())


def test_a_sample_does_not_depend_on_its_batch():
    y = torch.rand(2, 3, 2, 3, dtype=torch.float64) + 0.5
    for options in (dict(), dict(project=True), dict(measurement="poisson"), dict(perturbations=2)):
        both = dps(gaussian_eps, y, AveragePooling(2), LIKE, scale=0.1, **options, **COMMON)
        second = dps(gaussian_eps, y[1:], AveragePooling(2), LIKE[1:], scale=0.1, first_sample=1, **options, **COMMON)
        assert torch.allclose(both[1:], second, atol=1e-12)


OPERATORS = {
    "masking": Masking(torch.rand(4, 6, dtype=torch.float64)),
    "pooling": AveragePooling(2),
    "blurring": Blurring(gaussian_kernel(3, 1.0)),
    "resizing": Resizing(torch.rand(3, 4, dtype=torch.float64), torch.rand(2, 6, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_linear_and_have_their_adjoints(name):
    operator = OPERATORS[name]
    x, z = torch.randn(2, *LIKE.shape, dtype=torch.float64)
    y = operator(x)
    assert torch.allclose(operator(2 * x - z), 2 * y - operator(z), atol=1e-12)
    check_adjoint(operator, adjoint_of(operator, x.shape), x, y)
    with pytest.raises(ValueError, match="adjoint does not belong to the operator"):
        check_adjoint(operator, lambda v: 1.01 * adjoint_of(operator, x.shape)(v), x, y)


def test_a_lift_is_a_right_inverse():
    y = torch.randn(2, 3, 2, 3)
    assert torch.equal(AveragePooling(2)(AveragePooling(2).lift(y)), y)


def test_a_gaussian_kernel_is_normed_and_symmetric():
    kernel = gaussian_kernel(61, 3.0)
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(kernel, kernel.T.flip(0))
    assert float(kernel[30, 31] / kernel[30, 30]) == pytest.approx(math.exp(-1 / 18))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(y=torch.zeros(2, 3, 2, 2)), ValueError, r"operator gives \(2, 3, 2, 3\), y is \(2, 3, 2, 2\)"),
        (dict(y=torch.full((2, 3, 2, 3), math.nan)), ValueError, "y holds values that are NaN"),
        (dict(measurement="poison"), ValueError, "unknown measurement 'poison'"),
        (dict(measurement="poisson"), ValueError, "y must be positive"),
        (dict(norm="all"), ValueError, "unknown norm"),
        (dict(scale=math.inf), ValueError, "scale must be a finite number"),
        (dict(solver="rk45"), ValueError, "needs a solver with fixed steps"),
        (dict(guidance=2.0), ValueError, "needs uncond"),
        (dict(operator=lambda x: x[..., ::2, ::2], project=True), ValueError, "an operator with a lift"),
    ],
)
def test_bad_input_is_refused_before_the_run(options, error, message):
    def model(x, t):
        raise AssertionError("called")

    given = dict(y=torch.zeros(2, 3, 2, 3), operator=AveragePooling(2), like=LIKE, **COMMON)
    with pytest.raises(error, match=message):
        dps(model, **{**given, **options})


def test_a_model_without_gradient_is_named():
    with pytest.raises(SamplingError, match="no gradient with respect to x"):
        dps(torch.no_grad()(gaussian_eps), LIKE, lambda x: x, LIKE, **COMMON)


def test_explain_says_that_it_runs_without_a_program():
    dps(gaussian_eps, LIKE, lambda x: x, LIKE, **COMMON)
    assert any("needs a gradient through the model" in note for note in fastdiff.explain().notes)
