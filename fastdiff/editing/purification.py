"""DiffPure: Nie et al. 2022, Diffusion Models for Adversarial Purification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.errors import expect
from fastdiff.models.info import resolve
from fastdiff.process.grids import make_grid
from fastdiff.process.noise import CounterNoise, Noise, Seed, fixed_seeds, given_noise, seeds_for
from fastdiff.process.prediction import Prediction
from fastdiff.process.schedules import Float64Array, Schedule, VPDiscrete
from fastdiff.sampling import sample
from fastdiff.solvers import Solver, get_solver


def purify(
    model: Callable[..., Any],
    x: Tensor,
    t: float,
    *,
    solver: Solver | str = "euler-maruyama",
    step: float | None = None,
    end: float | None = None,
    repeats: int = 1,
    schedule: Schedule | str | None = None,
    prediction: Prediction | str | None = None,
    forward: Schedule | None = None,
    grid: Float64Array | None = None,
    anchor: Tensor | None = None,
    seed: Seed = None,
    noise: Noise = None,
    **others: Any,
) -> Tensor:
    """Pictures without what an attack has put on them: noised to the time t, and sampled back.

    x: (B, ...). t: the schedule's time, larger for larger attacks. solver: "euler-maruyama" is the reverse SDE of the
    paper, with probability_flow=True its ODE; "ddpm" with threshold=1 is guided-diffusion's sampler; and
    `purifying_langevin()` their Langevin SDE, which begins without noise, at x. step, end: times from t down
    in these steps to `end`, the last one shorter; for a schedule with training steps all of them, and the data, if
    None, else 0.001 and the schedule's t_min. grid: the times from t on, instead. repeats: how often, each time from
    the result before, with its own noise. forward: whose noise is added, the schedule if None; the authors' SDE and ODE
    add that of VPDiscrete with betas linspace(beta_0, beta_1, 1000) / 1000. anchor: (B, ...), for Langevin, to which
    the state is drawn, x if None. noise: as in `fastdiff.sample`, for one repetition, its first draw being that of the
    forward process. others: as there. Returns (B, ...), like x. Raises as `fastdiff.sample`.
    """
    x, t = arguments.state("x", x), arguments.number("t", t)
    schedule, prediction = resolve(model, schedule, prediction)
    method = get_solver(solver)
    times = make_grid(grid if grid is not None else _times(schedule, t, step, end), schedule, 1)
    expect(times[0] == t, f"grid must begin at t={t:g}, got {times[0]:g}")
    repeats = arguments.whole("repeats", repeats, 1)
    expect(noise is None or repeats == 1, "noise can be given for one repetition alone")
    seed = fixed_seeds(seed, len(x))
    dtype = torch.promote_types(x.dtype, torch.float32)
    draw = given_noise(noise, x.shape, dtype, x.device)
    langevin = isinstance(method.step, _Langevin)
    expect(anchor is None or langevin, f"anchor is for purifying_langevin, not {method.name!r}")
    p = (forward or schedule).point(t)
    tensors = {"anchor": x if anchor is None else anchor} if langevin else None
    for repetition in range(repeats):
        own = seeds_for(seed, repetition)
        if not langevin:
            z = CounterNoise.of(own, len(x)).initial(x.shape, dtype).to(x.device) if draw is None else draw(0)
            x = (p.alpha * x + p.sigma * z).to(x.dtype)
        rest = None if draw is None else _shifted(draw, 0 if langevin else 1)
        x = sample(
            model, x, schedule=schedule, prediction=prediction, solver=method, grid=times, seed=own, noise=rest,
            tensors=tensors, **others,
        )  # fmt: skip
    return x


def _shifted(draw: Callable[[int], Tensor], by: int) -> Callable[[int], Tensor]:
    return lambda number: draw(number + by)


def _times(schedule: Schedule, t: float, step: float | None, end: float | None) -> Float64Array:
    """From t down."""
    if isinstance(schedule, VPDiscrete) and step is None and end is None:
        last = round(t * schedule.num_steps)
        expect(abs(t * schedule.num_steps - last) < 1e-6 and last >= 1, f"t must be a training step, got {t!r}")
        return np.append(t, np.arange(last - 1, -1, -1) / schedule.num_steps)
    step = arguments.number("step", 1e-3 if step is None else step)
    end = arguments.number("end", schedule.t_min if end is None else end)
    expect(step > 0 and 0 <= end < t, f"step must be positive and end below t={t:g}, got {step!r} and {end!r}")
    return np.append(t - step * np.arange(int(np.ceil((t - end) / step - 1e-9))), end)


@dataclass(frozen=True)
class _Langevin:
    def __call__(
        self, model: Any, x: Any, s: Any, t: Any, history: Any, *, score_time: float, sigma2: float,
        lambda_ld: float, eta: float, noise: Any,
    ) -> Any:  # fmt: skip
        h = s.t - t.t
        pull = (x - model.tensor("anchor")) / sigma2
        score = model.score(x, model.at(score_time))
        return x + h * lambda_ld / 2 * (score - pull) + sqrt(lambda_ld * h) * eta * noise()


def purifying_langevin(
    *, score_time: float = 0.01, sigma2: float = 0.001, lambda_ld: float = 0.01, eta: float = 5.0
) -> Solver:
    """The Langevin SDE dx = lambda_ld / 2 (score(x) - (x - anchor) / sigma2) ds + sqrt(lambda_ld) eta dw of `purify`
    (Nie et al. 2022; `ldsde` of NVlabs/DiffPure), by Euler-Maruyama. score_time: the schedule's time at which
    the score is taken. Reads the run's tensor "anchor"."""
    options = {"score_time": score_time, "sigma2": sigma2, "lambda_ld": lambda_ld, "eta": eta}
    options = {name: arguments.number(name, value) for name, value in options.items()}
    expect(options["sigma2"] > 0 and options["lambda_ld"] > 0, f"sigma2 and lambda_ld must be positive, got {options}")
    return Solver(
        "purifying-langevin", _Langevin(), 0, 1, 0, "uniform", "Nie et al. 2022, DiffPure", True, options=options
    )
