"""Mokady et al. 2022, Null-text Inversion for Editing Real Images using Guided Diffusion Models."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.editing.stepping import Conditions, Times, ddim_step, times_of
from fastdiff.engine import Inputs
from fastdiff.engine.adaptive import CheckedModel
from fastdiff.errors import expect
from fastdiff.models.info import resolve
from fastdiff.process.noise import CounterNoise
from fastdiff.process.prediction import Prediction
from fastdiff.process.schedules import Schedule
from fastdiff.runtime.dispatcher import differentiable


@dataclass(frozen=True)
class NullText:
    """uncond: for each step, the arguments of the unconditional half. losses: of each step, before every update, mean
    squared. states: (steps + 1, B, ...), the guided way back, the most noisy one first."""

    uncond: list[dict[str, Any]]
    losses: list[list[float]]
    states: Tensor


@torch.inference_mode(False)
def null_text_inversion(
    model: Callable[..., Any],
    states: Tensor,
    *,
    schedule: Schedule | str | None = None,
    prediction: Prediction | str | None = None,
    steps: int = 50,
    grid: Times = None,
    guidance: float = 7.5,
    cond: Conditions = None,
    uncond: Conditions = None,
    name: str = "context",
    inner_steps: int = 10,
    lr: float = 0.01,
    early_stop: float = 1e-5,
) -> NullText:
    """Unconditional embeddings, one a step, with which guided DDIM returns along the states of an inversion (Mokady et
    al. 2022, Algorithm 1).

    states: (steps + 1, B, ...) of `invert`, on the same grid. name: of the argument that is optimised, beginning with
    uncond[name]; the embedding of a step is where the next one begins. Each step makes up to inner_steps updates of
    Adam with the rate lr (1 - i / 100) in step i, 0 from the hundredth on, on the mean squared distance to the
    inversion's state. It stops after an update whose loss was below early_stop + 2e-5 i, as in the published code. The
    model must be differentiable with respect to that argument. Raises ValueError for arguments that do not fit.
    """
    schedule, prediction = resolve(model, schedule, prediction)
    times = times_of(schedule, grid, steps)
    expect(
        isinstance(states, Tensor) and states.ndim >= 2 and len(states) == len(times),
        f"states must be the {len(times)} states of `invert` on this grid, got {arguments.described(states)}",
    )
    x = differentiable(arguments.state("states", states[-1]))
    cond, uncond = (arguments.conditions(n, c, len(x)) for n, c in (("cond", cond), ("uncond", uncond)))
    given = uncond.get(name)
    what = f"uncond must hold the embedding {name!r} that is optimised, a floating-point tensor"
    expect(isinstance(given, Tensor) and given.is_floating_point(), f"{what}, got {sorted(uncond)}")
    assert isinstance(given, Tensor)
    guidance, lr, early_stop = (
        arguments.number(n, v) for n, v in (("guidance", guidance), ("lr", lr), ("early_stop", early_stop))
    )
    inner_steps = arguments.whole("inner_steps", inner_steps, 0)
    counter, points = CounterNoise.of(0, len(x)), schedule.points(times)

    def eps(x: Tensor, k: int, conditions: Mapping[str, Any]) -> Tensor:
        inputs = Inputs(counter, cond=conditions)
        checked = CheckedModel("null_text_inversion", model, schedule, prediction, x, inputs)
        checked.step = k
        return checked.eps(x, points[k])

    null = differentiable(given).detach().clone()
    found = NullText([], [], torch.empty(0, dtype=x.dtype, device=x.device))
    way = [x]
    for k, (s, t) in enumerate(itertools.pairwise(points)):
        with torch.no_grad():
            conditional = eps(x, k, cond)
        null = null.clone().requires_grad_()
        adam, losses = torch.optim.Adam([null], lr=max(0.0, lr * (1 - k / 100))), []
        target = differentiable(states[len(points) - 2 - k])
        for _ in range(inner_steps):
            with torch.enable_grad():
                e = eps(x, k, {**uncond, name: null})
                loss = (ddim_step(x, e + guidance * (conditional - e), s, t) - target).square().mean()
                adam.zero_grad()
                loss.backward(inputs=[null])
            adam.step()
            losses.append(float(loss.detach()))
            if losses[-1] < early_stop + 2e-5 * k:
                break
        null = null.detach()
        found.uncond.append({**uncond, name: null})
        found.losses.append(losses)
        with torch.no_grad():
            e = eps(x, k, found.uncond[-1])
            x = ddim_step(x, e + guidance * (conditional - e), s, t)
        way.append(x)
    return NullText(found.uncond, found.losses, torch.stack(way))
