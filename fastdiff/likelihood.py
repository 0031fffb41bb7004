"""Log-likelihoods by the probability-flow ODE: Song et al. 2021, Score SDE, Section 4.3 and Appendix D.2."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.engine import Inputs
from fastdiff.engine.adaptive import OVERFLOW, CheckedModel
from fastdiff.errors import SamplingError, expect
from fastdiff.models.info import resolve
from fastdiff.process.noise import CounterNoise, Seed
from fastdiff.process.prediction import Prediction
from fastdiff.process.schedules import Point, Schedule
from fastdiff.runtime.dispatcher import differentiable
from fastdiff.solvers.rk45 import dormand_prince


@torch.inference_mode(False)  # the divergence needs gradients
def log_likelihood(
    model: Callable[..., Any],
    x: Tensor,
    *,
    schedule: Schedule | str | None = None,
    prediction: Prediction | str | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    seed: Seed = None,
    probes: int = 1,
    cond: Mapping[str, Any] | None = None,
    max_steps: int = 1000,
) -> Tensor:
    """log p(x) in nats, (B,), of the model's distribution at the schedule's t_min (data with that little noise).

    x: (B, ...) data, float32 or float64, as the model was trained on. The ODE dx/dt = v(x, t) is run up to t_max, where
    the density is that of the prior, normal with the schedule's `prior_std`; on the way log p changes by -div v, which
    is estimated without bias from `probes` random vectors a sample (Hutchinson's estimator, Grathwohl et al. 2019,
    FFJORD, Section 3.1). Needs a model that autograd can differentiate with respect to x. model, schedule, prediction,
    cond: as in `fastdiff.sample`. seed: of the vectors; rtol, atol, max_steps: of the solver "rk45", for x and log p
    together.

    Raises TypeError or ValueError for arguments that do not fit (atol must be positive), and SamplingError, naming the
    step, for what the model must not return, for a state that overflows, and if max_steps are not enough.
    """
    schedule, prediction = resolve(model, schedule, prediction)
    x = arguments.state("x", x)
    expect(
        x.dtype in (torch.float32, torch.float64) and x.ndim >= 2 and len(x) > 0,
        f"x must be a float32 or float64 tensor (B, ...), got {x.dtype} {tuple(x.shape)}",
    )
    arguments.beside_model("x", x, model)
    probes, max_steps = arguments.whole("probes", probes, 1), arguments.whole("max_steps", max_steps, 1)
    rtol, atol = arguments.tolerances(rtol, atol)
    expect(atol > 0, "atol must be positive: the change of log p begins at 0, of which no share can be taken")
    x = differentiable(x)
    given = arguments.conditions("cond", cond, len(x))
    arguments.same_device("cond", given, x.device)
    cond = _mapped(differentiable, given)
    counter = CounterNoise.of(seed, len(x))
    # Rademacher vectors: of those with independent elements they have the least variance.
    vectors = [counter.draw(n, x.shape, x.dtype).sign().to(x.device) for n in range(probes)]
    checked = _Differentiable("log_likelihood", model, schedule, prediction, x, Inputs(counter, cond=cond))

    def slope(state: Tensor, t: float) -> Tensor:
        with torch.enable_grad():
            y = state[:, :-1].reshape(x.shape).detach().requires_grad_()
            v = checked.velocity(y, schedule.point(t))
            divergence = torch.zeros_like(state[:, -1])
            for e in vectors:  # the mean of e^T (dv/dx) e is the trace of dv/dx (Eq. 40)
                (gradient,) = torch.autograd.grad((v * e).sum(), y, retain_graph=True)
                divergence += (gradient * e).flatten(1).sum(1) / probes
        return torch.cat([v.detach().flatten(1), divergence[:, None]], 1)

    start = torch.cat([x.detach().flatten(1), x.new_zeros(len(x), 1)], 1)
    attempts = dormand_prince(slope, start, schedule.t_min, schedule.t_max, rtol, atol, max_steps)
    state, t = start, schedule.t_min
    try:
        for attempt in attempts:
            (state, t), checked.step = attempt, checked.step + 1
    except OverflowError as error:
        raise SamplingError(f"{checked.where(schedule.point(t))}: {OVERFLOW}") from error
    if t != schedule.t_max:
        raise SamplingError(f"log_likelihood does not reach t={schedule.t_max:g} in max_steps={max_steps}: t={t:.6g}")
    z, change = state[:, :-1], state[:, -1]
    std = schedule.prior_std(schedule.t_max)
    prior = -0.5 * (z / std).square().sum(1) - z.shape[1] * (math.log(std) + 0.5 * math.log(2 * math.pi))
    return prior + change  # Eq. 39


class _Differentiable(CheckedModel):
    def _checked(
        self, network: Callable[..., Any], name: str, x: Tensor, s: Point, conditions: Mapping[str, Any]
    ) -> Tensor:
        out = super()._checked(network, name, x, s, conditions)
        if not out.requires_grad:  # the divergence would silently miss the model's part
            raise SamplingError(f"{self.where(s)}: the {name} has no gradient with respect to x (torch.no_grad in it?)")
        return out


def _mapped(function: Callable[[Tensor], Tensor], conditions: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions with what the function makes of each tensor, in mappings too."""
    return {
        key: function(v) if isinstance(v, Tensor) else _mapped(function, v) if isinstance(v, Mapping) else v
        for key, v in conditions.items()
    }


def bits_per_dimension(log_p: Tensor, x: Tensor, *, levels: float = 128.0) -> Tensor:
    """-log p(x) in bits for each dimension of x (B, ...), for data that are whole multiples of 1 / levels: 128 for
    bytes scaled to [-1, 1], 256 for bytes scaled to [0, 1]. Dequantization, by uniform noise, is the caller's.

    log_p: (B,), as `log_likelihood` gives it. Raises TypeError or ValueError for arguments that do not fit."""
    log_p, x = arguments.state("log_p", log_p), arguments.state("x", x)
    expect(log_p.shape == x.shape[:1], f"log_p must be ({len(x)},), one number a sample, got {tuple(log_p.shape)}")
    levels = arguments.number("levels", levels)
    expect(levels > 0, f"levels must be positive, got {levels!r}")
    return -log_p / (x[0].numel() * math.log(2)) + math.log2(levels)
