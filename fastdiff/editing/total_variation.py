"""Reconstruction with total variation: conjugate gradients and ADMM (Chung et al. 2023, Solving 3D Inverse Problems
Using Pre-trained 2D Diffusion Models: DiffusionMBIR)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.editing.operators import adjoint_of, check_adjoint
from fastdiff.errors import expect, unknown

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Differences:
    """D: periodic forward differences of a stack of slices (Z, C, H, W) along `axes`, 0 being from slice to slice."""

    axes: tuple[int, ...] = (2, 3, 0)

    def __call__(self, x: Tensor) -> Tensor:
        """(Z, C, H, W) -> (axes, Z, C, H, W)."""
        return torch.stack([x.roll(-1, axis) - x for axis in self.axes])

    def adjoint(self, d: Tensor) -> Tensor:
        """D^T d, (axes, Z, C, H, W) -> (Z, C, H, W)."""
        return torch.stack([part.roll(1, axis) - part for part, axis in zip(d, self.axes)]).sum(0)


def conjugate_gradients(matrix: Linear, b: Tensor, x: Tensor, iterations: int, stop_residual: float = 1e-10) -> Tensor:
    """x with matrix(x) = b, for a symmetric positive matrix, from the given x (Hestenes & Stiefel 1952). It stops after
    `iterations`, or where |b - matrix(x)| < stop_residual.

    HJ-harry/DiffusionMBIR keeps the residual and the direction in one array during its first iteration, so that its
    second direction is another; this is the textbook's.
    """
    r = b - matrix(x)
    p, rr = r, r.square().sum()
    for _ in range(arguments.whole("iterations", iterations, 1)):
        if rr.sqrt() < stop_residual:
            break
        Ap = matrix(p)
        a = rr / (p * Ap).sum()
        x, r = x + a * p, r - a * Ap
        before, rr = rr, r.square().sum()
        p = r + rr / before * p
    return x


def shrunk(x: Tensor, limit: float, tv: str) -> Tensor:
    """The proximal map of limit |x|: by component ("anisotropic"), or by the norm over the first axis ("isotropic")."""
    if tv == "anisotropic":
        return x.sign() * (x.abs() - limit).clamp(min=0)
    if tv == "isotropic":
        size = torch.linalg.vector_norm(x, dim=0, keepdim=True)
        return x * ((size - limit).clamp(min=0) / size.clamp(min=torch.finfo(x.dtype).tiny))
    raise unknown("tv", tv, ("anisotropic", "isotropic"))


class TotalVariationADMM:
    """min_x |y - A x|^2 / 2 + lamb |D x|_1 by ADMM: `step` is one iteration, which keeps d and u.

    y: the measurement; operator: A on (Z, C, H, W); adjoint: A^T, by autograd if None, else checked once by a random
    inner product. like: a stack of the slices' shape. rho: the penalty. Raises ValueError for what does not fit.
    """

    def __init__(
        self,
        y: Tensor,
        operator: Linear,
        like: Tensor,
        *,
        adjoint: Linear | None = None,
        rho: float,
        lamb: float,
        tv: str = "anisotropic",
        axes: Sequence[int] = (2, 3, 0),
        inner_iterations: int = 1,
        stop_residual: float = 1e-10,
    ) -> None:
        arguments.state("like", like)
        expect(like.ndim == 4, f"like must be a stack of slices (Z, C, H, W), got {tuple(like.shape)}")
        y = arguments.state("y", y).to(like.dtype)
        self.operator, self.adjoint = operator, adjoint or adjoint_of(operator, like.shape)
        check_adjoint(operator, self.adjoint, like, y)
        self.rho, self.lamb, self.tv = arguments.number("rho", rho), arguments.number("lamb", lamb), tv
        expect(self.rho > 0 and self.lamb >= 0, f"rho must be positive and lamb not negative, got {rho!r}, {lamb!r}")
        self.D, self.iterations, self.stop = Differences(tuple(axes)), inner_iterations, stop_residual
        self.y, self.ATy = y, self.adjoint(y)
        self.d = self.u = torch.zeros_like(self.D(self.ATy))
        shrunk(self.d, 0.0, tv)

    def normal(self, x: Tensor) -> Tensor:
        """(A^T A + rho D^T D) x."""
        return self.adjoint(self.operator(x)) + self.rho * self.D.adjoint(self.D(x))

    def step(self, x: Tensor) -> Tensor:
        """The next x, by conjugate gradients from x."""
        b = self.ATy + self.rho * self.D.adjoint(self.d - self.u)
        x = conjugate_gradients(self.normal, b, x, self.iterations, self.stop)
        Dx = self.D(x)
        self.d = shrunk(Dx + self.u, self.lamb / self.rho, self.tv)
        self.u = self.u + Dx - self.d
        return x

    def consistent(self, x: Tensor) -> Tensor:
        """x + A^T (y - A x) / A^T A 1, one step of SIRT; as it is where A^T A 1 is 0."""
        weights = self.adjoint(self.operator(torch.ones_like(x)))
        change = self.adjoint(self.y - self.operator(x))
        return x + torch.where(weights != 0, change / torch.where(weights != 0, weights, 1), 0)


def admm_tv(y: Tensor, operator: Linear, like: Tensor, *, outer_iterations: int = 30, **settings: object) -> Tensor:
    """The stack of slices, like `like` (Z, C, H, W), that explains y with small total variation, from zero. The other
    arguments are those of `TotalVariationADMM`."""
    problem = TotalVariationADMM(y, operator, like, **settings)  # type: ignore[arg-type]
    x = torch.zeros_like(like)
    for _ in range(arguments.whole("outer_iterations", outer_iterations, 1)):
        x = problem.step(x)
    return x
