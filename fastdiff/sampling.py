"""`fastdiff.sample`: from a model and a name of a solver to samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastdiff import arguments, engine
from fastdiff.engine.bound import Callback
from fastdiff.engine.per_sample import Mixed
from fastdiff.errors import expect
from fastdiff.guidance import (
    Guidance,
    Threshold,
    cfg_of,
    gradients_of,
    make_guidance,
    make_threshold,
    without_cfg,
    without_functions,
)
from fastdiff.models.info import resolve, sampling_of
from fastdiff.process.grids import Grid, make_grid
from fastdiff.process.noise import CounterNoise, Noise, Seed
from fastdiff.process.prediction import Prediction
from fastdiff.process.schedules import Float64Array, Schedule, get_schedule
from fastdiff.program import Program
from fastdiff.program.tracing import trace
from fastdiff.running import expect_tensors, make_inputs, run_program, shown, warn_undrawn, warn_unguided
from fastdiff.runtime.offloading import computes
from fastdiff.solvers import Solver, get_solver

_SOLVER, _STEPS = "dpmpp-2m", 20
Scales = float | Sequence[float] | NDArray[Any] | Tensor


def sample(
    model: Callable[..., Any],
    x_init_or_shape: Tensor | Sequence[int],
    *,
    schedule: Schedule | str | None = None,
    prediction: Prediction | str | None = None,
    solver: Solver | Program | str | None = None,
    steps: int | None = None,
    grid: str | Grid | Float64Array | None = None,
    guidance: Guidance | Scales | None = None,
    threshold: Threshold | float | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    seed: Seed = None,
    first_sample: int = 0,
    start: float | None = None,
    noise: Noise = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """Draw samples from a diffusion model.

    model(x, t, **cond) -> tensor of x's shape; x (B, ...), t (B,) in the units of its training, float32 or (for float64
    states) float64. A model from `fastdiff.load` knows its schedule and prediction.

    x_init_or_shape: the state at the first time of the grid, float32, float64, bfloat16 or float16 on any device; or
        the shape (B, ...) of the samples, for noise in the dtype and on the device of the model's parameters.
    schedule: e.g. fastdiff.schedules.VPDiscrete.scaled_linear(), or a name in fastdiff.schedules.SCHEDULES.
    prediction: what the model's output means: a name in fastdiff.prediction.PREDICTIONS.
    solver: a name in fastdiff.solvers.SOLVERS, or get_solver(name, **options), or a Program (see fastdiff.trace), which
        has the grid, the prediction, the guidance and the threshold in it: none of them may be given then, and the
        schedule is needed for a shape alone. If None, that of a distilled model (model.info.sampling), else "dpmpp-2m".
        steps: >= 1; the number of intervals of the grid, not of model calls (a step of "heun" calls the model twice);
        if None, those of a distilled model with its own solver, else 20. Adaptive solvers ("rk45", "dpm-solver-23",
        ...) take the two ends of the grid alone.
    grid: a name in fastdiff.grids.GRIDS, a function (schedule, steps) -> times, or the decreasing times themselves;
        if None, that of a distilled model with its own solver, else the schedule's or the solver's own.
    guidance: CFG(scale), or the scale, or one scale a sample, of classifier-free guidance, which needs uncond; or a
        Classifier, or fastdiff.guidance.Gradients: any number of gradients, with or without CFG.
    threshold: Threshold(limit, percentile), or the limit, that keeps x0 in range.
    cond, uncond: keyword arguments of the model; tensors are (B, ...), or (1, ...) for all samples. A guided call gives
        both to the model as one batch of 2B; where they do not fit into one, as prompts of different lengths, in two.
    tensors: constants that the solver reads, by name, such as those of `fastdiff.editing.replacement`; of the samples'
        shape, or broadcast to it.
    seed: one number, and sample k is the same at any batch size; or one a sample, in a sequence, an array or a tensor;
        None draws one from torch's generator. first_sample: number of the first sample under one seed, to make a large
        set in batches.
    start: the schedule's time at which x_init is, where that is not the grid's first: what the grid has after it is run
        (see fastdiff.diffuse for partial starts: SDEdit, Boomerang, TDPM).
    noise: the solver's noise from a torch.Generator, a tensor (draws, B, ...) or a function of the draw's number
        instead; the initial state still comes from the seed.
    callback(step, state): after every step; the state is overwritten later, clone it to keep it.
    progress: show a bar of the model's calls on stderr. On a GPU the loop is then not replayed as one CUDA graph.

    Returns (B, ...) in the dtype and on the device of the initial state. Raises TypeError or ValueError for arguments
    that do not fit, SamplingError (naming the step) if the model fails or returns another shape or NaN. Warns if uncond
    is given without guidance, or noise to a solver that draws none.
    """
    if isinstance(solver, Program):
        _expect_alone(solver, steps, dict(grid=grid, guidance=guidance, threshold=threshold, start=start))
        x, counter = _initial(model, x_init_or_shape, seed, first_sample, lambda: _prior_std(solver, model, schedule))
        inputs = make_inputs(x, counter, noise, cond, uncond, tensors=tensors)
        return run_program(solver, model, x, inputs, uncond is not None, callback, progress)
    schedule, prediction = resolve(model, schedule, prediction)
    own = sampling_of(model)
    method = get_solver(solver if solver is not None else own.solver if own else _SOLVER)
    if own and own.solver == method.name:
        steps, grid = own.steps if steps is None else steps, own.grid if grid is None else grid
    steps = _STEPS if steps is None else steps
    guidance, threshold = make_guidance(guidance), make_threshold(threshold)
    cfg = cfg_of(guidance)
    expect(cfg is None or uncond is not None, "guidance needs uncond, the model's arguments without the condition")
    arguments.callback(callback)
    times = make_grid(grid if grid is not None else schedule.grid or method.grid, schedule, steps)
    if start is not None:
        times = _from(start, times, isinstance(x_init_or_shape, Tensor))
    x, counter = _initial(model, x_init_or_shape, seed, first_sample, lambda: schedule.prior_std(times[0]))
    gradients = {name: term.gradient for name, term in gradients_of(guidance).items()}
    inputs = make_inputs(x, counter, noise, cond, uncond, gradients, tensors)
    if uncond is not None and cfg is None:
        warn_unguided(3)
    if cfg is not None and isinstance(cfg.scale, tuple):
        model = Mixed(model, cfg, inputs.cond, inputs.uncond, x, prediction.split)
        guidance, inputs = without_cfg(guidance), replace(inputs, cond={}, uncond={})
    if method.adaptive:
        expect_tensors(method.name, (), inputs.tensors)
        if not method.stochastic or method.options.get("eta") == 0:
            warn_undrawn(method.name, inputs, 3)
        with shown(model, progress, None) as network:
            return engine.run_adaptive(
                method, network, x, schedule, times, prediction, inputs, guidance=guidance, threshold=threshold,
                callback=callback,
            )  # fmt: skip
    kept = without_functions(guidance)
    program = traced(method, schedule, tuple(times.tolist()), prediction, kept, threshold, callback is not None)
    return run_program(program, model, x, inputs, None, callback, progress)


@lru_cache(maxsize=64)
def traced(
    solver: Solver,
    schedule: Schedule,
    times: tuple[float, ...],
    prediction: Prediction,
    guidance: Guidance | None,
    threshold: Threshold | None,
    keep_states: bool,
) -> Program:
    """`trace`, done once for the same arguments, which are kept: a classifier's gradient must not be among them."""
    return trace(solver, schedule, times, prediction, guidance=guidance, threshold=threshold, keep_states=keep_states)


def _from(start: float, times: Float64Array, has_state: bool) -> Float64Array:
    """The grid from `start` on."""
    expect(has_state, "start needs x_init, the state at that time, not a shape")
    start = arguments.number("start", start)
    expect(
        times[-1] < start <= times[0], f"start must lie within the grid ({times[-1]:g}, {times[0]:g}], got {start!r}"
    )
    return np.concatenate([[start], times[times < start]])


def _initial(
    model: Callable[..., Any],
    given: Tensor | Sequence[int],
    seed: Seed,
    first_sample: int,
    prior_std: Callable[[], float],
) -> tuple[Tensor, CounterNoise]:
    """The initial state, and the noise of the run. prior_std(): of the state, where it is not given."""
    arguments.network(model)
    if isinstance(given, Tensor):
        x = arguments.state("x_init", given)
        arguments.beside_model("x_init", x, model)
        return x, CounterNoise.of(seed, len(x), first_sample)
    shape = arguments.shape(given)
    counter = CounterNoise.of(seed, shape[0], first_sample)
    device, dtype = device_and_dtype(model)
    return (prior_std() * counter.initial(shape, torch.float32)).to(device, dtype), counter


def _expect_alone(program: Program, steps: int | None, others: Mapping[str, Any]) -> None:
    """Raise ValueError where something is given that is in the Program already."""
    for name, value in others.items():
        expect(value is None, f"{name} is part of a Program, and cannot be given beside one; trace another one")
    number = 1 + max((call.step for call in program.calls), default=-1)
    expect(steps in (None, number), f"the Program has {number} steps, and steps={steps!r} was given; trace another one")


def _prior_std(program: Program, model: Callable[..., Any], schedule: Schedule | str | None) -> float:
    """Standard deviation of the initial state of a Program, by the schedule."""
    schedule = schedule if schedule is not None else getattr(getattr(model, "info", None), "schedule", None)
    expect(schedule is not None, "a shape and a Program need the schedule as well, for the initial state")
    expect(bool(program.calls), f"the program {program.name!r} calls no model, so that its first time is not known")
    return get_schedule(schedule).prior_std(program.calls[0].point.t)


def device_and_dtype(model: Callable[..., Any]) -> tuple[torch.device, torch.dtype]:
    """Where and in what the model computes: as hooks say that move its weights, as its first floating-point parameter
    is, else the CPU and float32."""
    if isinstance(model, nn.Module):
        device, dtype = computes(model.modules())
        for parameter in model.parameters():
            if parameter.is_floating_point():
                return device or parameter.device, dtype or parameter.dtype
    return torch.device("cpu"), torch.float32
