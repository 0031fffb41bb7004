"""RePaint: Lugmayr et al. 2022, RePaint: Inpainting using Denoising Diffusion Probabilistic Models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from math import sqrt
from typing import Any

from fastdiff import arguments
from fastdiff.editing.blending import blended, inner_step, wrapped
from fastdiff.errors import expect, unknown
from fastdiff.process.schedules import Point
from fastdiff.solvers import Solver, get_solver


@dataclass(frozen=True)
class Jumps:
    """Where the sampler goes back into the noise (Lugmayr et al. 2022; `get_schedule_jump` of andreas128/RePaint).

    From each time index that is a multiple of jump_length, jump_n_sample - 1 times jump_length steps up and down again;
    jump2 and jump3 are jumps within these. n_sample - 1 times one step up and down at every index. start_resampling:
    nothing is repeated above this index. Raises ValueError for what is no whole number of at least 1.
    """

    jump_length: int = 10
    jump_n_sample: int = 10
    n_sample: int = 1
    jump2_length: int = 1
    jump2_n_sample: int = 1
    jump3_length: int = 1
    jump3_n_sample: int = 1
    start_resampling: int = 10**8

    def __post_init__(self) -> None:
        for each in fields(self):
            least = 0 if each.name == "start_resampling" else 1
            object.__setattr__(self, each.name, arguments.whole(each.name, getattr(self, each.name), least))

    def times(self, t_T: int) -> list[int]:
        """The time indices that are visited from t_T - 1 to the data, which is -1."""
        levels = (
            (self.jump_length, self.jump_n_sample),
            (self.jump2_length, self.jump2_n_sample),
            (self.jump3_length, self.jump3_n_sample),
        )
        left = [dict.fromkeys(range(0, t_T - length, length), count - 1) for length, count in levels]
        t, times = arguments.whole("t_T", t_T, 1), []
        while t >= 1:
            t -= 1
            times.append(t)
            if t + 1 < t_T - 1 and t <= self.start_resampling:
                times += [t + 1, t] * (self.n_sample - 1)
            for k in (2, 1, 0):
                length = levels[k][0]
                if left[k].get(t, 0) > 0 and t <= self.start_resampling - length:
                    left[k][t] -= 1
                    times += range(t + 1, t + length + 1)
                    t += length
                    for inner in range(k + 1, 3):
                        step, count = levels[inner]
                        left[inner] = dict.fromkeys(range(0, t_T - step, step), count - 1)
        return [*times, -1]

    def __call__(self, points: Sequence[Point]) -> list[list[Point]]:
        """The steps of a run along the points of a grid."""
        count = len(points) - 1
        return [[points[count - 1 - a], points[count - 1 - b]] for a, b in pairwise(self.times(count))]


def slow_times(t_T: int, n_sample: int = 1, n_steplength: int = 1) -> list[int]:
    """The other schedule of the authors' code (`get_schedule`): from t_T down to -1, and after each step n_sample - 1
    times up again by n_steplength steps, or to t_T, and down."""
    t = arguments.whole("t_T", t_T, 0)
    n_sample, n_steplength = arguments.whole("n_sample", n_sample, 1), arguments.whole("n_steplength", n_steplength, 1)
    times = [t]
    while t >= 0:
        t -= 1
        times.append(t)
        k = min(n_steplength, t_T - t)
        times += [*range(t + 1, t + k + 1), *range(t + k - 1, t - 1, -1)] * (n_sample - 1)
    return times


@dataclass(frozen=True)
class _RePainting:
    inner: Solver
    blend: str

    def __call__(self, model: Any, x: Any, s: Any, t: Any, history: Any, *, noise: Any, **options: Any) -> Any:
        if t.t > s.t:  # the forward process
            history.clear()
            ratio = t.alpha / s.alpha
            return ratio * x + sqrt((t.sigma - ratio * s.sigma) * (t.sigma + ratio * s.sigma)) * noise()
        if self.blend == "before" and model.step > 0:
            x = blended(model, x, s, noise)
        x = inner_step(self.inner, model, x, s, t, history, noise, options)
        return blended(model, x, t, noise) if self.blend == "after" else x


def repaint(solver: Solver | str = "ddpm", jumps: Jumps = Jumps(), *, blend: str = "after") -> Solver:
    """RePaint, Algorithm 1: each step down puts the noised known picture into the state, and jumps repeat stretches.

    jumps: those of the paper, of 10 steps, each 10 times. blend: "after" every step down, at the level it leads to, as
    in the paper, so that the known part is kept to the last bit; "before" every one but the first, at the level it
    begins at, as in the authors' code, whose last step is then not followed by a blend. Reads the run's tensors "known"
    and "mask", 1 where it is known. A multistep solver begins anew after each step up.
    """
    if blend not in ("after", "before"):
        raise unknown("blend", blend, ("after", "before"))
    inner = get_solver(solver)
    expect(inner.spans is None, f"repaint needs a solver whose steps are the grid's intervals, not {inner.name!r}")
    return wrapped(inner, _RePainting(inner, blend), "repaint", route=jumps)
