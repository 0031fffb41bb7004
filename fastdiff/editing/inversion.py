"""From a given image: to a state in the middle of the schedule, by noise or by running the ODE backwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastdiff import arguments, engine
from fastdiff.errors import expect
from fastdiff.models.info import resolve
from fastdiff.process.grids import Grid, make_grid
from fastdiff.process.noise import CounterNoise, Seed
from fastdiff.process.prediction import Prediction
from fastdiff.process.schedules import Float64Array, Schedule, get_schedule
from fastdiff.sampling import traced
from fastdiff.solvers import Solver, get_solver


def diffuse(x0: Tensor, schedule: Schedule | str, t: float, *, seed: Seed = None) -> Tensor:
    """The forward process: alpha(t) x0 + sigma(t) eps, a state at time t of images x0 (B, ...), in their dtype.

    Sampling from there, `fastdiff.sample(model, diffuse(x0, schedule, t), start=t, ...)`, is SDEdit (Meng et al. 2022)
    and, with the model's own images, Boomerang (Luzi et al. 2022): the smaller t, the closer the result to x0. A state
    at t from elsewhere, e.g. another generator, is the truncated start of TDPM (Zheng et al. 2023). The same seed gives
    the same noise as in `fastdiff.sample`. schedule: or its name. Raises ValueError for a time outside of the schedule.
    """
    x0, p = arguments.state("x0", x0), get_schedule(schedule).point(arguments.number("t", t))
    eps = CounterNoise.of(seed, len(x0)).initial(x0.shape, torch.promote_types(x0.dtype, torch.float32))
    return (p.alpha * x0 + p.sigma * eps.to(x0.device)).to(x0.dtype)


def encode(
    model: Callable[..., Any],
    x0: Tensor,
    *,
    schedule: Schedule | str | None = None,
    prediction: Prediction | str | None = None,
    solver: Solver | str = "ddim",
    steps: int = 50,
    grid: str | Grid | Float64Array | None = None,
    to: float | None = None,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    """The noise that an image comes from: the probability-flow ODE from the data up (DDIM inversion: Song et al. 2021,
    DDIM, Section 4.3; Dhariwal & Nichol 2021, Appendix F).

    x0: (B, ...) images, taken as the state at the grid's last time before the data. to: the time to stop at, a point of
    the grid; its first if None. The other arguments are those of `fastdiff.sample`, which from the result, with the
    same arguments (and start=to), gives x0 again up to the error of the solver. Guidance is left out: it makes the two
    runs differ. Returns the state, like x0. Raises ValueError for a solver that draws noise.
    """
    x0 = arguments.state("x0", x0)
    schedule, prediction = resolve(model, schedule, prediction)
    method = get_solver(solver)
    times = make_grid(grid if grid is not None else schedule.grid or method.grid, schedule, steps)
    to = times[0] if to is None else arguments.number("to", to)
    expect(0 < to <= schedule.t_max, f"to must lie in (0, {schedule.t_max:g}], got {to:g}")
    times = times[(times > 0) & (times <= to)][::-1]
    expect(len(times) >= 2, f"encoding needs two times of the grid between the data and {to!r}, got {times.tolist()}")
    noisy = method.stochastic and method.options.get("eta") != 0
    expect(not noisy, f"solver {method.name!r} draws noise, and there is no way back from it; use eta=0 or another")
    cond = arguments.conditions("cond", cond, len(x0))
    program = traced(method, schedule, tuple(times.tolist()), prediction, None, None, False)
    return engine.run(program, model, x0, engine.Inputs(CounterNoise.of(0, len(x0)), cond=cond))
