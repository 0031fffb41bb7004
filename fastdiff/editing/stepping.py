"""Methods that look at the state or change it between two steps: one step at a time, or a whole run on tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from fastdiff import arguments, engine
from fastdiff.engine import Inputs
from fastdiff.engine.adaptive import CheckedModel
from fastdiff.errors import expect
from fastdiff.guidance import Guidance, cfg_of, gradients_of, make_guidance, without_functions
from fastdiff.models.info import resolve
from fastdiff.process.grids import Grid, make_grid
from fastdiff.process.noise import CounterNoise
from fastdiff.process.prediction import Prediction
from fastdiff.process.schedules import Float64Array, Point, Schedule
from fastdiff.running import make_inputs, warn_unguided
from fastdiff.sampling import traced
from fastdiff.solvers import Solver, get_solver

Conditions = Mapping[str, Any] | None
After = Callable[[Any, Tensor, Point, Point, Callable[[], Tensor]], Tensor]
Times = str | Grid | Float64Array | Sequence[float] | None


def times_of(schedule: Schedule, grid: Times, steps: int) -> list[float]:
    """Decreasing times that end where the network knows the data, not at t = 0, from which there is no way up.

    grid: as in `fastdiff.sample`, "trailing" if None; its end at the data becomes the schedule's t_min. Times that are
    given stay as they are, and two of them may be equal. Raises ValueError for times that increase or are not positive.
    """
    if isinstance(grid, str) or callable(grid) or grid is None:
        found = make_grid(grid if grid is not None else schedule.grid or "trailing", schedule, steps)
        found = found[found > schedule.t_min * (1 + 1e-9)]
        times = [*found.tolist(), schedule.t_min]
    else:
        times = [arguments.number("grid", t) for t in np.asarray(grid, dtype=np.float64)]
    expect(len(times) >= 2, f"grid must have two times or more, got {times}")
    good = all(s >= t for s, t in pairwise(times)) and times[0] <= schedule.t_max * (1 + 1e-12) and times[-1] > 0
    expect(good, f"grid must be decreasing times in (0, {schedule.t_max:g}], got {times}")
    return times


class Stepper:
    """A model with its schedule, guidance and conditions, to be asked for single steps.

    x: a state of the run, (B, ...), for its batch, dtype and device. The other arguments are those of
    `fastdiff.sample`. Raises ValueError for guidance without uncond, and for a solver that looks back to earlier steps.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        x: Tensor,
        *,
        schedule: Schedule | str | None = None,
        prediction: Prediction | str | None = None,
        solver: Solver | str = "ddim",
        guidance: Any = None,
        cond: Conditions = None,
        uncond: Conditions = None,
        seed: Any = 0,
    ) -> None:
        arguments.network(model)
        arguments.beside_model("x", x, model)
        self.model = model
        self.schedule, self.prediction = resolve(model, schedule, prediction)
        self.solver = get_solver(solver)
        expect(
            self.solver.history == 0 and not self.solver.adaptive and self.solver.spans is None,
            f"solver {self.solver.name!r} looks back to earlier steps or chooses its own; take one like 'ddim'",
        )
        given = make_guidance(guidance)
        cfg, gradients = cfg_of(given), {name: term.gradient for name, term in gradients_of(given).items()}
        self.guidance: Guidance | None = without_functions(given)
        expect(cfg is None or uncond is not None, "guidance needs uncond, the model's arguments without the condition")
        used = uncond if cfg is not None else None
        if uncond is not None and cfg is None:
            warn_unguided(4)
        self.counter = CounterNoise.of(seed, len(x))
        self.inputs = make_inputs(x, self.counter, None, cond, used, gradients)
        self.drawn = 0

    def step(self, x: Tensor, s: float, t: float, solver: Solver | None = None) -> Tensor:
        """From the state at time s to that at time t, by the solver of the run or another one."""
        method = solver or self.solver
        program = traced(method, self.schedule, (s, t), self.prediction, self.guidance, None, False)
        inputs, first = self.inputs, self.drawn
        if program.num_noises:
            draw = lambda n: self.counter.draw(first + n, x.shape, x.dtype).to(x.device)  # noqa: E731
            inputs = replace(inputs, draw=draw)
            self.drawn += program.num_noises
        return engine.run(program, self.model, x, inputs)

    def eps(self, x: Tensor, t: float) -> Tensor:
        """The noise that the network, with its guidance, sees in x at time t."""
        return self.step(x, t, t, _EPS)


def _eps(model: Any, x: Any, s: Any, t: Any, history: Any) -> Any:
    return model.eps(x, s)


_EPS = Solver("eps", _eps, 0, 1, 0, "trailing", "Ho et al. 2020, DDPM, Eq. 11", stochastic=False)


@dataclass
class Draws:
    """The noises of a run on tensors: each call is the next one, like `like`."""

    inputs: Inputs
    like: Tensor
    drawn: int = 0

    def __call__(self) -> Tensor:
        self.drawn += 1
        return self.inputs.noise(self.drawn - 1, self.like.shape, self.like.dtype, self.like.device)


def take_steps(
    method: Solver,
    model: CheckedModel,
    x: Tensor,
    noise: Draws,
    after: After,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """The state after all steps of a solver along model.grid, on tensors and without a Program.

    method: any but an adaptive one. The history of a multistep solver has what the network saw in earlier steps. x:
    (B, ...), float32 or float64. after(model, x, s, t, noise): the state that the next step begins with, of the one
    that the solver reached. callback(step, state): after that.
    """
    keywords = {"noise": noise} if method.stochastic else {}
    history: deque = deque(maxlen=method.history)
    intervals = method.intervals(model.grid)
    model.steps = len(intervals)
    for model.step, (s, *model.inner, t) in enumerate(intervals):
        x = method.step(model, x, s, t, history, **method.options, **keywords)
        x = after(model, x, s, t, noise)
        if callback is not None:
            callback(model.step, x)
    return x


def ddim_step(x: Tensor, eps: Tensor, s: Any, t: Any) -> Tensor:
    """Song et al. 2021, DDIM, Eq. 12 with eta = 0: from point s to point t, with a noise that is already known."""
    x0 = (x - s.sigma * eps) / s.alpha
    return t.alpha * x0 + t.sigma * eps
