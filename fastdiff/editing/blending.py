"""What is known of a picture, put into a state: the piece that the methods of inpainting share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.process.schedules import Point
from fastdiff.program.transforms import transform
from fastdiff.solvers import Solver

Matrix = tuple[tuple[float, ...], ...]
TENSORS = ("known", "mask")  # that a blend reads


def blended(model: Any, x: Any, p: Point | None, noise: Callable[[], Any], matrix: Matrix | None = None) -> Any:
    """mask (alpha known + sigma z) + (1 - mask) x, with the level of p; None for the clean picture.

    The run's tensors "known" and "mask" (1 where it is known) are read. matrix: the blend is made in the coordinates
    y_j = sum_i x_i matrix_ij of the channels; "known" and "mask" are in them.
    """
    known = model.tensor("known")
    if p is not None:
        known = p.alpha * known
        if p.sigma > 0:
            known = known + p.sigma * noise()
    if matrix is None:
        return model.apply("blend", x, known, model.tensor("mask"))
    y = model.apply("mix_channels", x, matrix=json.dumps(matrix))
    y = model.apply("blend", y, known, model.tensor("mask"))
    return model.apply("mix_channels", y, matrix=json.dumps(inverse(matrix)))


@transform
def blend(x: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """mask known + (1 - mask) x: known to the last bit where mask is 1, x where it is 0."""
    return torch.lerp(x, known, mask)


@transform
def mix_channels(x: Tensor, *, matrix: str) -> Tensor:
    """y_j = sum_i x_i matrix_ij over the channels of (B, C, ...). matrix: C rows of C numbers, as JSON."""
    m = torch.tensor(json.loads(matrix), dtype=x.dtype, device=x.device)
    return torch.einsum("bi...,ij->bj...", x, m).contiguous()


def inverse(matrix: Sequence[Sequence[float]]) -> Matrix:
    """Of a square matrix, in float64. Raises ValueError where there is none."""
    m = torch.tensor(matrix, dtype=torch.float64, device="cpu")
    square = m.ndim == 2 and m.shape[0] == m.shape[1]
    expect(square and bool(torch.linalg.matrix_rank(m) == len(m)), f"matrix must have an inverse, got {matrix!r}")
    return tuple(tuple(row) for row in torch.linalg.inv(m).tolist())


def wrapped(inner: Solver, step: Callable[..., Any], name: str, **changes: Any) -> Solver:
    """The solver whose step is `step`, with the options of `inner`. step: an object that is equal to others with the
    same settings, as Programs are kept by it. Raises ValueError for a solver that chooses its own times."""
    expect(not inner.adaptive, f"{name} needs a solver with fixed steps, and {inner.name!r} chooses its own")
    return replace(inner, name=f"{name}, {inner.name}", step=step, stochastic=True, **changes)


def inner_step(
    inner: Solver, model: Any, x: Any, s: Point, t: Point, history: Any, noise: Any, options: dict[str, Any]
) -> Any:
    """The step of a solver that is wrapped."""
    return inner.step(model, x, s, t, history, **options, **({"noise": noise} if inner.stochastic else {}))
