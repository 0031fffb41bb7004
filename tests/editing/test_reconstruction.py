"""Conjugate gradients, ADMM with total variation, and 3-D reconstruction with a model of slices."""

import math

import pytest
import torch

from fastdiff.editing import TotalVariationADMM, admm_tv, conjugate_gradients, mbir
from fastdiff.editing.operators import ParallelBeam
from fastdiff.editing.total_variation import Differences, shrunk
from fastdiff.schedules import VE
from fastdiff.solvers import get_solver


def stack(depth=4, size=8):
    """Boxes, whose height differs from slice to slice, (Z, 1, N, N), float64."""
    x = torch.zeros(depth, 1, size, size, dtype=torch.float64)
    for k in range(depth):
        x[k, :, 2 : 4 + k // 2, 2:6] = 1
    return x


def few_rows(x, rows=20):
    """A matrix that sees less than a slice has pixels."""
    matrix = torch.randn(rows, x[0].numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return lambda z: z.flatten(1) @ matrix.T


def test_conjugate_gradients_solve_a_system_in_as_many_steps():
    generator = torch.Generator().manual_seed(1)
    half = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    matrix, b = half @ half.T + torch.eye(6), torch.randn(6, dtype=torch.float64, generator=generator)
    exact = torch.linalg.solve(matrix, b)
    errors = [float((conjugate_gradients(lambda x: matrix @ x, b, 0 * b, n) - exact).norm()) for n in (2, 4, 6)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-10
    assert torch.equal(conjugate_gradients(lambda x: matrix @ x, b, exact, 5, stop_residual=1e-6), exact)


@pytest.mark.parametrize("axes", [(0,), (2, 3, 0), (2, 3)])
def test_differences_have_their_adjoint(axes):
    D, x = Differences(axes), torch.randn(3, 2, 4, 5, dtype=torch.float64)
    d = torch.randn(len(axes), *x.shape, dtype=torch.float64)
    assert float((D(x) * d).sum()) == pytest.approx(float((x * D.adjoint(d)).sum()))


@pytest.mark.parametrize("tv", ["isotropic", "anisotropic"])
def test_shrinking_is_the_proximal_map(tv):
    """It is nearer to the minimum of limit |z| + |z - x|^2 / 2 than what is beside it, and keeps zeros."""

    def cost(z):
        size = z.abs().sum() if tv == "anisotropic" else torch.linalg.vector_norm(z, dim=0).sum()
        return 0.4 * size + (z - x).square().sum() / 2

    x = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    best = shrunk(x, 0.4, tv)
    for seed in range(20):
        beside = 0.01 * torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert cost(best) < cost(best + beside)
    assert not shrunk(torch.zeros(3, 5), 0.4, tv).any()


@pytest.mark.parametrize("tv", ["isotropic", "anisotropic"])
def test_admm_finds_a_piecewise_constant_stack_from_few_rays(tv):
    x = stack()
    operator = few_rows(x)
    without = admm_tv(operator(x), operator, x, rho=1.0, lamb=0.0, tv=tv, outer_iterations=50, inner_iterations=5)
    found = admm_tv(operator(x), operator, x, rho=1.0, lamb=0.05, tv=tv, outer_iterations=200, inner_iterations=5)
    assert float((found - x).norm()) < 0.2 * float((without - x).norm())
    assert float((operator(found) - operator(x)).norm()) < 0.1 * float(operator(x).norm())


def test_an_adjoint_that_does_not_fit_is_refused():
    x = stack()
    operator = few_rows(x)
    with pytest.raises(ValueError, match="adjoint does not belong to the operator"):
        admm_tv(operator(x), operator, x, adjoint=lambda y: torch.ones_like(x), rho=1.0, lamb=0.1)
    with pytest.raises(ValueError, match=r"operator gives \(4, 20\), the measurement is \(4, 19\)"):
        admm_tv(operator(x)[:, 1:], operator, x, rho=1.0, lamb=0.1)
    with pytest.raises(ValueError, match="must be a stack of slices"):
        admm_tv(operator(x), operator, x[0], rho=1.0, lamb=0.1)
    with pytest.raises(ValueError, match="unknown tv 'total'"):
        admm_tv(operator(x), operator, x, rho=1.0, lamb=0.1, tv="total")
    with pytest.raises(ValueError, match="rho must be positive"):
        admm_tv(operator(x), operator, x, rho=0.0, lamb=0.1)


def test_parallel_beams():
    """From opposite sides a projection is mirrored; its sum is that of the slice; two right angles are sums."""
    x = stack()
    beam = ParallelBeam(torch.tensor([0.0, math.pi / 2, math.pi]))
    y = beam(x)
    assert y.shape == (4, 1, 3, 8)
    assert torch.allclose(y[:, :, 0], x.sum(2) / 4)
    assert torch.allclose(y[:, :, 2], y[:, :, 0].flip(-1), atol=1e-6)
    assert torch.allclose(y.sum(-1), (x.sum((2, 3)) / 4)[..., None].expand(4, 1, 3), atol=1e-6)
    problem = TotalVariationADMM(y, beam, x, rho=1.0, lamb=0.1)  # checks the adjoint by autograd
    assert torch.allclose(problem.consistent(x), x, atol=1e-12)


SCHEDULE = VE(0.01, 3.0)
MEAN, STD = 0.25, 0.4


def of_slices(x, sigma):
    """The score of data N(MEAN, STD^2)."""
    return (MEAN - x) / (STD**2 + sigma[0] ** 2)


@pytest.mark.parametrize("corrector", ["none", "langevin"])
def test_mbir_explains_the_measurement_better_than_the_model_alone(corrector):
    x = stack()
    operator = few_rows(x, 30)
    solver = get_solver("predictor-corrector", corrector=corrector)
    common = dict(solver=solver, schedule=SCHEDULE, prediction="score", steps=30, seed=1)
    found = mbir(of_slices, operator(x), operator, x, lamb=0.04, rho=10.0, final_consistency=False, **common)
    alone = mbir(of_slices, 0 * operator(x), lambda z: 0 * operator(z), x, lamb=0.0, rho=1e-9, **common)
    residuals = [float((operator(z) - operator(x)).norm()) for z in (found, alone)]
    assert residuals[0] < 0.3 * residuals[1]
    assert float((found - x).norm()) < float((alone - x).norm())
    assert torch.equal(found, mbir(of_slices, operator(x), operator, x, lamb=0.04, rho=10.0, **common))


def test_mbir_refuses_other_solvers():
    with pytest.raises(ValueError, match="needs a predictor-corrector sampler, not 'ddim'"):
        mbir(of_slices, stack(), lambda x: x, stack(), solver="ddim", schedule=SCHEDULE, prediction="score")
    with pytest.raises(ValueError, match="unknown tv_axes 'y'"):
        mbir(of_slices, stack(), lambda x: x, stack(), tv_axes="y", schedule=SCHEDULE, prediction="score")
