"""MagicMix: Liew et al. 2022, MagicMix: Semantic Mixing with Diffusion Models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.editing.stepping import Conditions, Stepper, Times, ddim_step, times_of
from fastdiff.errors import expect
from fastdiff.process.noise import CounterNoise, Seed
from fastdiff.process.prediction import Prediction
from fastdiff.process.schedules import Schedule


def magicmix(
    model: Callable[..., Any],
    x0: Tensor,
    *,
    k_min: float = 0.3,
    k_max: float = 0.6,
    v: float = 0.9,
    schedule: Schedule | str | None = None,
    prediction: Prediction | str | None = None,
    steps: int = 50,
    grid: Times = None,
    guidance: Any = None,
    cond: Conditions = None,
    uncond: Conditions = None,
    step_from: str = "mixed",
    seed: Seed = None,
    noise: Tensor | None = None,
) -> Tensor:
    """The layout of a picture with the content of a text, (B, ...) like x0 (Algorithm 1).

    The run begins with the noised picture k_max of the steps before its end. Until k_min of them before the end, the
    state is mixed before each step but the first with the picture noised to that step: v state + (1 - v) picture.
    step_from: "mixed": the DDIM step starts from the mixture, as in the paper's algorithm; "unmixed": the mixture is
    only shown to the network and the step starts from the state, as in daspartho/MagicMix and in diffusers. noise: like
    x0, the picture's, instead of that from seed. The other arguments are those of `fastdiff.sample`. Raises ValueError
    for arguments that do not fit.
    """
    x0 = arguments.state("x0", x0)
    k_min, k_max, v = (arguments.number(n, a) for n, a in (("k_min", k_min), ("k_max", k_max), ("v", v)))
    expect(0 <= k_min <= k_max <= 1, f"0 <= k_min <= k_max <= 1 must hold, got {k_min!r} and {k_max!r}")
    expect(0 <= v <= 1, f"v must lie in [0, 1], got {v!r}")
    expect(step_from in ("mixed", "unmixed"), f"step_from must be 'mixed' or 'unmixed', got {step_from!r}")
    stepper = Stepper(
        model, x0, schedule=schedule, prediction=prediction, guidance=guidance, cond=cond, uncond=uncond
    )  # fmt: skip
    points = stepper.schedule.points(times_of(stepper.schedule, grid, steps))
    if noise is None:
        noise = CounterNoise.of(seed, len(x0)).initial(x0.shape, torch.float32).to(x0)
    expect(noise.shape == x0.shape, f"noise must be like x0, {tuple(x0.shape)}, got {tuple(noise.shape)}")
    n = len(points) - 1
    first, last_mixed = n - int(k_max * n), n - int(k_min * n)
    expect(first < n, f"k_max {k_max!r} leaves none of the {n} steps")
    x = points[first].alpha * x0 + points[first].sigma * noise
    for i in range(first, n):
        s, t = points[i], points[i + 1]
        mixed = x
        if first < i < last_mixed:
            mixed = v * x + (1 - v) * (s.alpha * x0 + s.sigma * noise)
        eps = stepper.eps(mixed, s.t)
        x = ddim_step(mixed if step_from == "mixed" else x, eps, s, t)
    return x
