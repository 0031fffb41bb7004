"""Inpainting by putting what is known into each state, or into each estimate of the data.

All of these are solvers that wrap another one, and read the run's tensors "known", the picture, and "mask", 1 where it
is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastdiff.editing.blending import blended, inner_step, wrapped
from fastdiff.errors import one_of
from fastdiff.solvers import Solver, get_solver

LEVELS = ("end", "start", "clean")


@dataclass(frozen=True)
class _Replacing:
    inner: Solver
    level: str

    def __call__(self, model: Any, x: Any, s: Any, t: Any, history: Any, *, noise: Any, **options: Any) -> Any:
        x = inner_step(self.inner, model, x, s, t, history, noise, options)
        return blended(model, x, {"end": t, "start": s, "clean": None}[self.level], noise)


def replacement(solver: Solver | str = "ddpm", *, level: str = "end") -> Solver:
    """After every step, mask (alpha known + sigma z) + (1 - mask) x (Song et al. 2021, Score SDE, Appendix I.2).

    level: of the noise on the known part: "end", that of the state it is put into, so that a run to the data keeps the
    known part to the last bit; "start", that of the step's beginning, as in HJ-harry/MCG_diffusion, whose known part
    keeps the noise of the last step; "clean", none: Palette (Saharia et al. 2022, as
    Janspiry/Palette-Image-to-Image-Diffusion-Models has it).
    """
    one_of("level", level, LEVELS)
    inner = get_solver(solver)
    return wrapped(inner, _Replacing(inner, level), "palette" if level == "clean" else "replacement")


def palette(solver: Solver | str = "ddpm") -> Solver:
    """The clean picture outside of the hole after every step: Palette (Saharia et al. 2022). The authors published no
    code; this is that of Janspiry/Palette-Image-to-Image-Diffusion-Models, which also limits x0 (threshold=1)."""
    return replacement(solver, level="clean")


@dataclass(frozen=True)
class _Knowing:
    inner: Solver

    def __call__(self, model: Any, x: Any, s: Any, t: Any, history: Any, *, noise: Any, **options: Any) -> Any:
        model.denoised = lambda x0: model.apply("blend", x0, model.tensor("known"), model.tensor("mask"))
        try:
            return inner_step(self.inner, model, x, s, t, history, noise, options)
        finally:
            model.denoised = None


def glide(solver: Solver | str = "ddpm") -> Solver:
    """E[x0 | x] is the known picture where it is known, before it is limited: GLIDE (Nichol et al. 2021, and
    notebooks/inpaint.ipynb of openai/glide-text2im). The known part is kept to the last bit by a run to the data whose
    solver ends with x0, as all do whose last step returns it."""
    inner = get_solver(solver)
    return wrapped(inner, _Knowing(inner), "glide")
