"""Runs whose steps need gradients through the network: on tensors, with the network called once for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.editing.stepping import After, Draws, take_steps
from fastdiff.engine import Inputs
from fastdiff.engine.adaptive import CheckedModel
from fastdiff.errors import SamplingError, expect
from fastdiff.guidance import CFG, make_guidance, make_threshold
from fastdiff.models.info import resolve
from fastdiff.process.grids import make_grid
from fastdiff.process.noise import CounterNoise, Noise, Seed
from fastdiff.process.schedules import Point
from fastdiff.running import make_inputs
from fastdiff.runtime import choice, runs
from fastdiff.runtime.dispatcher import differentiable
from fastdiff.solvers import Solver, get_solver


class Differentiated(CheckedModel):
    """A TensorModel that keeps the graph of the first call of every step. kept: (point, x, x again, output) of it."""

    kept: tuple[Point, Tensor, Tensor, Tensor] | None = None
    kept_in = -1  # the step

    def _evaluate(self, x: Tensor, s: Point, variance: bool = False) -> tuple[Tensor, Tensor]:
        if self.kept_in == self.step:
            return super()._evaluate(x, s, variance)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y, out = super()._evaluate(leaf, s, variance)
        if not out.requires_grad:
            raise SamplingError(f"{self.where(s)}: the model has no gradient with respect to x (torch.no_grad in it?)")
        self.kept, self.kept_in = (s, leaf, y, out), self.step
        if self.prediction.split:
            self._learned = self._learned.detach()
        return x, out.detach()

    def gradient(self, value: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """(d/dx of the sum of value(x0(x)), value), x being the state of the step's first call, x0 after all limits."""
        assert self.kept is not None
        s, leaf, y, out = self.kept
        with torch.enable_grad():
            found = value(self._views(y, out, s, False)[0])
            (gradient,) = torch.autograd.grad(found.sum(), leaf)
        if not torch.isfinite(gradient).all():
            raise SamplingError(f"{self.where(s)}: the gradient of the measurement is NaN or infinite")
        return gradient, found.detach()


def run_differentiated(
    name: str,
    model: Callable[..., Any],
    like: Tensor,
    after: After,
    *,
    x_init: Tensor | None = None,
    solver: Solver | str = "ddpm",
    steps: int = 100,
    schedule: Any = None,
    prediction: Any = None,
    grid: Any = None,
    guidance: Any = None,
    threshold: Any = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    seed: Seed = None,
    first_sample: int = 0,
    noise: Noise = None,
    callback: Callable[[int, Tensor], None] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    kind: type[CheckedModel] = Differentiated,
) -> Tensor:
    """The sample, like `like` (B, ...), of a solver with `after` at the end of each step. The arguments are those of
    `fastdiff.sample`. kind: CheckedModel where `after` needs no gradient. No Program: `fastdiff.explain` says so."""
    arguments.network(model)
    schedule, prediction = resolve(model, schedule, prediction)
    method, guidance, threshold = get_solver(solver), make_guidance(guidance), make_threshold(threshold)
    expect(not method.adaptive, f"{name} needs a solver with fixed steps, and {method.name!r} chooses its own")
    expect(
        not isinstance(guidance, CFG) or (uncond is not None and not isinstance(guidance.scale, tuple)),
        f"guidance of {name} needs uncond, the model's arguments without the condition, and one scale",
    )
    expect(guidance is None or isinstance(guidance, CFG), f"{name} takes no classifier as its guidance")
    arguments.callback(callback)
    times = make_grid(grid if grid is not None else schedule.grid or method.grid, schedule, steps)
    counter = CounterNoise.of(seed, len(like), first_sample)
    if x_init is None:
        x_init = (schedule.prior_std(times[0]) * counter.initial(like.shape, torch.float32)).to(like)
    x_init = differentiable(arguments.state("x_init", x_init))
    expect(x_init.shape == like.shape, f"x_init must be {tuple(like.shape)}, got {tuple(x_init.shape)}")
    arguments.beside_model("x_init", x_init, model)
    inputs = make_inputs(x_init, counter, noise, cond, uncond, None, tensors)
    needs = "a gradient through the model" if kind is Differentiated else "what is no part of a Program"
    choice.note(name, f"each step needs {needs}, so that steps run in PyTorch")
    with torch.inference_mode(False), torch.no_grad(), runs.one():
        return _run(name, kind, method, model, x_init, schedule.points(times), inputs, after, callback,
                    dict(schedule=schedule, prediction=prediction, guidance=guidance, threshold=threshold))  # fmt: skip


def _run(
    name: str,
    kind: type[CheckedModel],
    method: Solver,
    model: Callable[..., Any],
    x_init: Tensor,
    points: list[Point],
    inputs: Inputs,
    after: After,
    callback: Callable[[int, Tensor], None] | None,
    options: dict[str, Any],
) -> Tensor:
    x = x_init.to(torch.promote_types(x_init.dtype, torch.float32))
    schedule, prediction = options.pop("schedule"), options.pop("prediction")
    step = kind(f"{name}, {method.name}", model, schedule, prediction, x_init, inputs, **options)
    step.grid = points
    x = take_steps(method, step, x, Draws(inputs, x), after, callback)
    if not torch.isfinite(x).all():
        raise SamplingError(f"{name}: the sample holds values that are NaN or infinite; a smaller scale may help")
    return x.to(x_init.dtype)
