"""What a measurement sees of a picture: linear operators for inverse problems, and the check of an adjoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff import arguments
from fastdiff.errors import expect


@dataclass(frozen=True, eq=False)
class Masking:
    """A x = mask x. mask: (1 or B, ...), of the picture's shape or broadcast to it."""

    mask: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.mask * x


@dataclass(frozen=True)
class AveragePooling:
    """The mean of blocks of factor x factor pixels of (B, C, H, W). `lift` repeats each pixel: A lift(y) = y."""

    factor: int

    def __post_init__(self) -> None:
        arguments.whole("factor", self.factor, 1)

    def __call__(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.factor)

    def lift(self, y: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, factor h, factor w)."""
        return y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)


@dataclass(frozen=True, eq=False)
class Resizing:
    """y = rows x columns^T for each channel of (B, C, H, W): any separable resizing. rows: (h, H), columns: (w, W)."""

    rows: Tensor
    columns: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.rows.to(x) @ x @ self.columns.to(x).T


@dataclass(frozen=True, eq=False)
class Blurring:
    """The correlation of each channel of (B, C, H, W) with a kernel (k, k), k odd, the picture reflected at its edge
    without repeating it. Raises ValueError for another kernel."""

    kernel: Tensor
    pad: int = field(init=False)

    def __post_init__(self) -> None:
        shape = tuple(self.kernel.shape)
        good = len(shape) == 2 and shape[0] == shape[1] and shape[0] % 2 == 1
        expect(good, f"kernel must be (k, k) with an odd k, got {shape}")
        object.__setattr__(self, "pad", shape[0] // 2)

    def __call__(self, x: Tensor) -> Tensor:
        kernel = self.kernel.to(x).expand(x.shape[1], 1, *self.kernel.shape)
        return F.conv2d(F.pad(x, (self.pad,) * 4, mode="reflect"), kernel, groups=x.shape[1])


@dataclass(frozen=True, eq=False)
class ParallelBeam:
    """Line integrals of slices (Z, C, N, N) by parallel rays: (Z, C, angles, N), in units of half a slice's width. The
    slices are turned about their middle, bilinearly, and summed along columns. angles: in radians."""

    angles: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        rows = []
        for angle in self.angles.to(x):
            c, s, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
            turn = torch.stack([torch.stack([c, -s, none]), torch.stack([s, c, none])])
            where = F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
            rows.append(F.grid_sample(x, where, align_corners=False).sum(-2) * (2 / size))
        return torch.stack(rows, 2)


def gaussian_kernel(size: int, intensity: float) -> Tensor:
    """(size, size), float64: a delta in the middle filtered by a Gaussian of standard deviation `intensity` pixels, cut
    at four of them and reflected at the array's edge, as in DPS (Chung et al. 2023)."""
    radius = int(4 * intensity + 0.5)
    weights = [exp(-0.5 * (k / intensity) ** 2) for k in range(-radius, radius + 1)]
    line = torch.zeros(arguments.whole("size", size, 1), dtype=torch.float64, device="cpu")
    for i in range(size):
        for k, weight in zip(range(-radius, radius + 1), weights):
            place = (i + k) % (2 * size)  # ... c b a | a b c | c b a ...
            line[i] += weight * ((place if place < size else 2 * size - 1 - place) == size // 2)
    line /= sum(weights)
    return line[:, None] * line


def adjoint_of(operator: Callable[[Tensor], Tensor], shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """A^T of a linear operator on tensors of `shape`, by autograd."""

    def adjoint(y: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.zeros(tuple(shape), dtype=y.dtype, device=y.device, requires_grad=True)
            return torch.autograd.grad(operator(x), x, y.detach().clone())[0]

    return adjoint


def check_adjoint(
    operator: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor], x: Tensor, y: Tensor
) -> None:
    """Raise ValueError unless <A u, v> = <u, A^T v> for one random u, like x, and v, like y."""
    generator = torch.Generator("cpu").manual_seed(0)
    u, v = (torch.randn(each.shape, generator=generator, dtype=torch.float64, device="cpu").to(each) for each in (x, y))
    forward = operator(u)
    expect(forward.shape == v.shape, f"operator gives {tuple(forward.shape)}, the measurement is {tuple(v.shape)}")
    back = adjoint(v)
    expect(back.shape == u.shape, f"adjoint gives {tuple(back.shape)}, the picture is {tuple(u.shape)}")
    left, right = (forward * v).sum().item(), (u * back).sum().item()
    size = forward.norm().item() * v.norm().item() + u.norm().item() * back.norm().item()
    expect(
        abs(left - right) <= 100 * torch.finfo(x.dtype).eps ** 0.75 * size,
        f"adjoint does not belong to the operator: <A u, v> = {left:g} and <u, A^T v> = {right:g} for random u, v",
    )
