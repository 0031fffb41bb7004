"""`fastdiff.sample`: from a model and a name of a solver to samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdiff import engine
from fastdiff.engine.loop import Callback
from fastdiff.errors import expect
from fastdiff.guidance import CFG, Classifier, Guidance, Threshold
from fastdiff.models.info import resolve
from fastdiff.process.grids import Grid, make_grid
from fastdiff.process.noise import CounterNoise, Noise, given_noise
from fastdiff.process.prediction import Prediction
from fastdiff.process.schedules import Float64Array, Schedule
from fastdiff.program import Program
from fastdiff.program.tracing import trace
from fastdiff.solvers import Solver, get_solver


def sample(
    model: Callable[..., Any],
    x_init_or_shape: Tensor | Sequence[int],
    *,
    schedule: Schedule | str | None = None,
    prediction: Prediction | str | None = None,
    solver: Solver | str = "dpmpp-2m",
    steps: int = 20,
    grid: str | Grid | Float64Array | None = None,
    guidance: Guidance | float | None = None,
    threshold: Threshold | float | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    seed: int | Sequence[int] | None = None,
    first_sample: int = 0,
    start: float | None = None,
    noise: Noise = None,
    callback: Callback | None = None,
) -> Tensor:
    """Draw samples from a diffusion model.

    model(x, t, **cond) -> tensor of x's shape; x (B, ...), t (B,) in the units of its training, float32 or (for float64
    states) float64. A model from `fastdiff.load` knows its schedule and prediction.

    x_init_or_shape: the state at the first time of the grid, float32, float64, bfloat16 or float16 on any device; or
        the shape (B, ...) of the samples, for noise in the dtype and on the device of the model's parameters.
    schedule: e.g. fastdiff.schedules.VPDiscrete.scaled_linear(), or a name in fastdiff.schedules.SCHEDULES.
    prediction: what the model's output means: a name in fastdiff.prediction.PREDICTIONS.
    solver: a name in fastdiff.solvers.SOLVERS, or get_solver(name, **options). steps: >= 1; the number of intervals
        of the grid, not of model calls (a step of "heun" calls the model twice). Adaptive solvers ("rk45",
        "dpm-solver-23", ...) take the two ends of the grid alone.
    grid: a name in fastdiff.grids.GRIDS, a function (schedule, steps) -> times, or the decreasing times themselves;
        the schedule's or the solver's own if None.
    guidance: CFG(scale), or the scale, of classifier-free guidance, which needs uncond; or a Classifier.
    threshold: Threshold(limit, percentile), or the limit, that keeps x0 in range.
    cond, uncond: keyword arguments of the model; tensors of (B, ...) under guidance.
    seed: one number, and sample k is the same at any batch size; or one a sample; None draws one from torch's
        generator. first_sample: number of the first sample under one seed, to make a large set in batches.
    start: the schedule's time at which x_init is, where that is not the grid's first: what the grid has after it is run
        (see fastdiff.diffuse for partial starts: SDEdit, Boomerang, TDPM).
    noise: the solver's noise from a torch.Generator, a tensor (draws, B, ...) or a function of the draw's number
        instead; the initial state still comes from the seed.
    callback(step, state): after every step; the state is overwritten later, clone it to keep it.

    Returns (B, ...) in the dtype and on the device of the initial state. Raises ValueError for arguments that do not
    fit, SamplingError (naming the step) if the model fails or returns another shape or NaN.
    """
    schedule, prediction = resolve(model, schedule, prediction)
    method = get_solver(solver)
    if isinstance(guidance, (int, float, Real)):  # NumPy's numbers are Real alone
        guidance = CFG(float(guidance))
    if isinstance(threshold, (int, float, Real)):
        threshold = Threshold(float(threshold))
    expect(
        not isinstance(guidance, CFG) or uncond is not None,
        "guidance needs uncond, the model's arguments without the condition",
    )
    times = make_grid(grid if grid is not None else schedule.grid or method.grid, schedule, steps)
    if start is not None:
        times = _from(start, times, isinstance(x_init_or_shape, Tensor))
    program = None
    if not method.adaptive:
        # Of a classifier the Program has the scale; its gradient may hold a network, which a cache must not keep.
        kept = replace(guidance, gradient=_given_when_it_runs) if isinstance(guidance, Classifier) else guidance
        program = traced(method, schedule, tuple(times.tolist()), prediction, kept, threshold, callback is not None)

    if isinstance(x_init_or_shape, Tensor):
        x = x_init_or_shape
        expect(
            x.is_floating_point() and x.ndim >= 1 and len(x) > 0,
            f"x_init must be a floating-point tensor (B, ...), got {x.dtype} {tuple(x.shape)}",
        )
        counter = CounterNoise.of(seed, len(x), first_sample)
    else:
        shape = tuple(x_init_or_shape)
        expect(
            len(shape) >= 1 and all(isinstance(n, Integral) and n > 0 for n in shape),
            f"the shape of the samples must be positive whole numbers, got {shape}",
        )
        counter = CounterNoise.of(seed, shape[0], first_sample)
        device, dtype = _device_and_dtype(model)
        x = (schedule.prior_std(times[0]) * counter.initial(shape, torch.float32)).to(device, dtype)
    if program is not None and isinstance(noise, (Tensor, list, tuple)):
        wanted = f"solver {method.name!r} draws {program.num_noises} noises in this run"
        expect(len(noise) >= program.num_noises, f"{wanted}, and noise holds {len(noise)}")
    draw = given_noise(noise, x.shape, torch.promote_types(x.dtype, torch.float32), x.device)
    gradients = {"classifier": guidance.gradient} if isinstance(guidance, Classifier) else {}
    inputs = engine.Inputs(counter, draw, cond or {}, uncond or {}, gradients)
    if program is not None:
        return engine.run(program, model, x, inputs, callback)
    return engine.run_adaptive(
        method, model, x, schedule, times, prediction, inputs, guidance=guidance, threshold=threshold, callback=callback
    )


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


def _given_when_it_runs(x: Tensor, t: Tensor) -> Tensor:
    raise NotImplementedError("the gradient is given to the engine")


def _from(start: float, times: Float64Array, has_state: bool) -> Float64Array:
    """The grid from `start` on."""
    expect(has_state, "start needs x_init, the state at that time, not a shape")
    expect(
        times[-1] < start <= times[0], f"start must lie within the grid ({times[-1]:g}, {times[0]:g}], got {start!r}"
    )
    return np.concatenate([[start], times[times < start]])


def _device_and_dtype(model: Callable[..., Any]) -> tuple[torch.device, torch.dtype]:
    """Where and in what the model computes: its first floating-point parameter, else the CPU and float32."""
    for parameter in model.parameters() if isinstance(model, nn.Module) else ():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32
