"""DiffusionMBIR: 3-D reconstruction with a model of 2-D slices (Chung et al. 2023, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastdiff.editing.blending import wrapped
from fastdiff.editing.differentiated import run_differentiated
from fastdiff.editing.total_variation import Linear, TotalVariationADMM
from fastdiff.engine.adaptive import CheckedModel
from fastdiff.errors import expect, one_of
from fastdiff.process.schedules import Point
from fastdiff.solvers import Solver, get_solver
from fastdiff.solvers.score_sde import corrected, predicted, predictor_corrector, transition

AXES = {"z": (0,), "xyz": (2, 3, 0)}


@dataclass(frozen=True)
class _PredictThenCorrect:
    """The step of a predictor-corrector sampler with the corrections last, at the level of s, as in DiffusionMBIR."""

    def __call__(
        self, model: Any, x: Any, s: Point, t: Point, history: Any, *, predictor: str, corrector: str, snr: float,
        n_steps_each: int, norm: str, probability_flow: bool, discretization: str, denoise: bool, noise: Any,
    ) -> Any:  # fmt: skip
        move = transition(model, s, t, discretization)
        if predictor != "none":
            z = noise()
            if t.sigma == 0 and discretization == "grid":
                return model.x0(x, s)
            mean, std = predicted(model, x, s, t, move, predictor, probability_flow, discretization)
            x = mean if probability_flow else mean + std * z
        return corrected(model, x, s, move, corrector, snr=snr, n_steps_each=n_steps_each, norm=norm, noise=noise)


def mbir(
    model: Callable[..., Any],
    y: Tensor,
    operator: Linear,
    like: Tensor,
    *,
    adjoint: Linear | None = None,
    lamb: float = 0.04,
    rho: float = 10.0,
    tv_axes: str = "z",
    inner_iterations: int = 1,
    final_consistency: bool = False,
    solver: Solver | str | None = None,
    **others: Any,
) -> Tensor:
    """A stack of slices that explains the measurement y: after each step of a predictor-corrector sampler, which takes
    every slice alone, one iteration of ADMM with total variation brings it nearer to y and joins the slices.

    y: what operator(x) gives of a stack x (Z, C, H, W). like: a tensor of the stack's shape, dtype and device. adjoint:
    A^T, by autograd if None. lamb, rho, inner_iterations: see `TotalVariationADMM`. tv_axes: "z", from slice to slice,
    as in the paper, or "xyz". final_consistency: at the end x := x + A^T(y - A x) / A^T A 1. solver:
    "predictor-corrector" with options; with discretization="released", as in the authors' code, the last step leaves
    its noise. others: as in `fastdiff.editing.dps`. The authors' conjugate gradients differ from the textbook's, which
    are used here, from their second iteration on. Returns (Z, C, H, W), like `like`. Raises TypeError or ValueError
    before the run for what does not fit, an adjoint that is none among it.
    """
    one_of("tv_axes", tv_axes, AXES)
    inner = get_solver(solver or get_solver("predictor-corrector", corrector="langevin"))
    expect(inner.step is predictor_corrector, f"mbir needs a predictor-corrector sampler, not {inner.name!r}")
    problem = TotalVariationADMM(
        y, operator, like, adjoint=adjoint, rho=rho, lamb=lamb, axes=AXES[tv_axes], inner_iterations=inner_iterations
    )

    def after(step: CheckedModel, x: Tensor, s: Point, t: Point, noise: Callable[[], Tensor]) -> Tensor:
        x = problem.step(x)
        return problem.consistent(x) if final_consistency and step.steps_left == 1 else x

    chosen = wrapped(inner, _PredictThenCorrect(), "mbir")
    return run_differentiated("mbir", model, like, after, solver=chosen, kind=CheckedModel, **others)
