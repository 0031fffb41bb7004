"""DDIM inversion with all of its states, which DiffEdit and null-text inversion start from."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.editing.stepping import Conditions, Stepper, Times, ddim_step, times_of
from fastdiff.errors import expect
from fastdiff.process.prediction import Prediction
from fastdiff.process.schedules import Schedule
from fastdiff.solvers import Solver


def invert(
    model: Callable[..., Any],
    x0: Tensor,
    *,
    schedule: Schedule | str | None = None,
    prediction: Prediction | str | None = None,
    steps: int = 50,
    grid: Times = None,
    guidance: Any = None,
    cond: Conditions = None,
    uncond: Conditions = None,
    evaluate: str = "start",
) -> Tensor:
    """The states on the way from images to their noise, (steps + 1, B, ...), x0 first: z_{t+1} = alpha_{t+1} x0(z_t) +
    sigma_{t+1} eps (Song et al. 2021, DDIM, Section 4.3; Mokady et al. 2022, Null-text Inversion, Section 3.1).

    x0: (B, ...) images, taken as the state at the grid's last time. grid: decreasing times, or as in `fastdiff.sample`,
    "trailing" if None; its end is the schedule's t_min instead of the data. evaluate: "start": eps is eps(z_t, t), as
    in the papers; "end": eps(z_t, t + 1), as in the code published with Null-text Inversion and in diffusers. The other
    arguments are those of `fastdiff.sample`; the papers invert without guidance. Raises ValueError for arguments that
    do not fit, SamplingError if the model fails.
    """
    x0 = arguments.state("x0", x0)
    expect(evaluate in ("start", "end"), f"evaluate must be 'start' or 'end', got {evaluate!r}")
    stepper = Stepper(
        model, x0, schedule=schedule, prediction=prediction, guidance=guidance, cond=cond, uncond=uncond
    )  # fmt: skip
    times = times_of(stepper.schedule, grid, steps)[::-1]
    solver = _FROM_END if evaluate == "end" else _FROM_START
    states = [x0]
    for s, t in itertools.pairwise(times):
        states.append(stepper.step(states[-1], s, t, solver))
    return torch.stack(states)


def _from_start(model: Any, x: Any, s: Any, t: Any, history: Any) -> Any:
    return ddim_step(x, model.eps(x, s), s, t)


def _from_end(model: Any, x: Any, s: Any, t: Any, history: Any) -> Any:
    return ddim_step(x, model.eps(x, t), s, t)


_SOURCE = "Song et al. 2021, DDIM, Section 4.3"
_FROM_START = Solver("ddim-inversion", _from_start, 1, 1, 0, "trailing", _SOURCE, stochastic=False)
_FROM_END = Solver("ddim-inversion-end", _from_end, 1, 1, 0, "trailing", _SOURCE, stochastic=False)
