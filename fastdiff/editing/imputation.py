"""Inpainting and colorisation by predictor-corrector samplers: Song et al. 2021, Score SDE, Appendix I.2."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from fastdiff.editing.blending import Matrix, blended, inverse, mix_channels, wrapped
from fastdiff.errors import expect
from fastdiff.solvers import Solver, get_solver
from fastdiff.solvers.score_sde import corrected, predicted, predictor_corrector, transition

# Orthonormal: the first coordinate is the grey picture times sqrt(3).
GREY: Matrix = tuple(
    (sqrt(1 / 3), -sqrt(2 / 3) if i == 0 else sqrt(1 / 6), (0.0, sqrt(1 / 2), -sqrt(1 / 2))[i]) for i in range(3)
)


@dataclass(frozen=True)
class _Imputing:
    matrix: Matrix | None

    def __call__(
        self,
        model: Any,
        x: Any,
        s: Any,
        t: Any,
        history: Any,
        *,
        predictor: str,
        corrector: str,
        snr: float,
        n_steps_each: int,
        norm: str,
        probability_flow: bool,
        discretization: str,
        denoise: bool,
        noise: Any,
    ) -> Any:
        released = discretization == "released"
        if released and model.step == 0:
            x = blended(model, x, None, noise, self.matrix)
        move = transition(model, s, t, discretization)
        x = corrected(model, x, s, move, corrector, snr=snr, n_steps_each=n_steps_each, norm=norm, noise=noise)
        x = blended(model, x, s, noise, self.matrix)
        if predictor != "none" and t.sigma == 0 and not released:
            x = model.x0(x, s)
        elif predictor != "none":
            z = noise()
            mean, std = predicted(model, x, s, t, move, predictor, probability_flow, discretization)
            x = mean if probability_flow else mean + std * z
        if released and denoise and model.steps_left == 1:
            return blended(model, x, replace(s, sigma=0.0), noise, self.matrix)  # its mean
        return blended(model, x, s if released else t, noise, self.matrix)


def imputation(
    solver: Solver | str = "predictor-corrector", *, matrix: Sequence[Sequence[float]] | None = None
) -> Solver:
    """mask (alpha known + sigma z) + (1 - mask) x after the corrections and after the prediction of every step.

    solver: "predictor-corrector" or another of Score SDE's, with its options. With discretization="grid" the known part
    has the level of the state that it is put into, and a run to the data keeps it to the last bit. With "released", as
    in the authors' code, the run begins with the clean known part, both blends have the level of the step's beginning,
    and the result is the mean of the last blend, whose unknown part still has its noise. matrix: see
    `colorization_tensors`. Reads the run's tensors "known" and "mask", 1 where it is known. Raises ValueError for
    another solver and for a matrix without an inverse.
    """
    inner = get_solver(solver)
    expect(inner.step is predictor_corrector, f"imputation needs a predictor-corrector sampler, not {inner.name!r}")
    rows = None if matrix is None else tuple(tuple(map(float, row)) for row in matrix)
    if rows is not None:
        inverse(rows)
    return wrapped(inner, _Imputing(rows), "imputation" if rows is None else "colorization")


def colorization_tensors(grey: Tensor, matrix: Sequence[Sequence[float]] = GREY) -> dict[str, Tensor]:
    """The tensors of a run with `imputation(matrix=matrix)`, whose known part is the first of the coordinates
    y_j = sum_i x_i matrix_ij: the colours of a grey picture are then sampled.

    grey: (B, C, ...), the grey value in all C channels. matrix: C rows of C numbers; if not given, an orthonormal one
    whose first coordinate is the brightness.
    """
    mask = torch.zeros(1, grey.shape[1], *[1] * (grey.ndim - 2), dtype=grey.dtype, device=grey.device)
    mask[:, 0] = 1
    return {"known": mix_channels(grey, matrix=json.dumps([list(map(float, row)) for row in matrix])), "mask": mask}
