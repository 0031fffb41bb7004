"""Score distillation: losses that pull what a renderer makes towards what a frozen diffusion model expects.

SDS: Poole et al. 2022, DreamFusion: Text-to-3D using 2D Diffusion. SJC: Wang et al. 2022, Score Jacobian Chaining.
DDS: Hertz et al. 2023, Delta Denoising Score. The Jacobian of the network is left out in all of them, so that it runs
without gradients: the loss has the method's gradient with respect to x, and half its square as its value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.engine.calls import join, tensor_in
from fastdiff.errors import expect, unknown
from fastdiff.process.schedules import Point
from fastdiff.train.process import Process

# w(t) of the gradient w(t) (eps_hat - eps), for variance-preserving schedules.
WEIGHTINGS: dict[str, Callable[[Point], float]] = {
    "sds": lambda p: p.sigma**2,  # DreamFusion
    "uniform": lambda p: 1.0,  # DDS
    "fantasia3d": lambda p: p.alpha * p.sigma**2,  # Chen et al. 2023, Fantasia3D
}


def sds_loss(
    network: Callable[..., Any],
    process: Process,
    x: Tensor,
    generator: torch.Generator | None = None,
    *,
    guidance: float = 100.0,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    weighting: str | Callable[[Point], float] = "sds",
    interval: tuple[float, float] = (0.02, 0.98),
    scale: float = 1.0,
    clip: float | None = None,
    image: bool = False,
    times: Sequence[float] | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Score distillation sampling: (B,), whose gradient with respect to x is scale w(t) (eps_hat - eps) (Poole et al.
    2022, Eq. 3).

    x: (B, ...), what a differentiable renderer made, as the network's data are. generator: of the times and the noise;
    times, in the schedule's units, and noise, like x, take its place where they are given. interval: of the times, as
    shares of the schedule's range. guidance: eps_hat = uncond + guidance (cond - uncond), which needs uncond unless it
    is 1; threestudio's scale g is g + 1 here. weighting: a name in WEIGHTINGS or a function of the point; or "sjc", w =
    1; or "sjc-no-reduction", whose gradient is eps_hat, without the variance reduction of Wang et al. 2022. clip: the
    gradient is limited to [-clip, clip]. image: threestudio's image loss is added, the distance of x to the denoised
    picture, weighted with w alpha / sigma. stable-dreamfusion and threestudio use the mean of this loss over the batch.
    Raises ValueError for arguments that do not fit.
    """
    x, guidance, scale = _given(process, x, guidance, scale, clip)
    plain = weighting in ("sjc", "sjc-no-reduction")
    if isinstance(weighting, str) and weighting not in WEIGHTINGS and not plain:
        raise unknown("weighting", weighting, [*WEIGHTINGS, "sjc", "sjc-no-reduction"])
    w = (lambda p: 1.0) if plain else WEIGHTINGS[weighting] if isinstance(weighting, str) else weighting
    points, eps = _draws(process, x, generator, interval, times, noise)
    with torch.no_grad():
        eps_hat = _noise(network, process, x, eps, points, guidance, cond, uncond)
        weights = _column([w(p) for p in points], x)
        gradients = [scale * weights * (eps_hat if weighting == "sjc-no-reduction" else eps_hat - eps)]
        if image:  # alpha / sigma (x - x0_hat), which is eps_hat - eps
            gradients.append(weights * (eps_hat - eps))
        if clip is not None:
            gradients = [g.clamp(-clip, clip) for g in gradients]
    return sum((_with_gradient(x, g) for g in gradients[1:]), start=_with_gradient(x, gradients[0]))


def dds_loss(
    network: Callable[..., Any],
    process: Process,
    x: Tensor,
    source: Tensor,
    generator: torch.Generator | None = None,
    *,
    guidance: float = 7.5,
    cond: Mapping[str, Any] | None = None,
    source_cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    weighting: str | Callable[[Point], float] = "uniform",
    interval: tuple[float, float] = (0.05, 0.95),
    scale: float = 1.0,
    times: Sequence[float] | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Delta denoising score: (B,), whose gradient with respect to x is scale w(t) (eps_hat(x) - eps_hat(source)), both
    with the same time and noise (Hertz et al. 2023, Eq. 3).

    x: (B, ...), the picture that is edited, at the start a copy of source, (B, ...). cond, source_cond: the network's
    arguments for what it shall be and for what it is. The other arguments are those of `sds_loss`; weighting is a name
    in WEIGHTINGS or a function of the point.
    """
    x, guidance, scale = _given(process, x, guidance, scale, None)
    expect(source.shape == x.shape, f"source must be like x, {tuple(x.shape)}, got {tuple(source.shape)}")
    if isinstance(weighting, str) and weighting not in WEIGHTINGS:
        raise unknown("weighting", weighting, WEIGHTINGS)
    w = WEIGHTINGS[weighting] if isinstance(weighting, str) else weighting
    points, eps = _draws(process, x, generator, interval, times, noise)
    with torch.no_grad():
        ours = _noise(network, process, x, eps, points, guidance, cond, uncond)
        theirs = _noise(network, process, source, eps, points, guidance, source_cond, uncond)
        gradient = scale * _column([w(p) for p in points], x) * (ours - theirs)
    return _with_gradient(x, gradient)


def _given(process: Any, x: Any, guidance: Any, scale: Any, clip: Any) -> tuple[Tensor, float, float]:
    if not isinstance(process, Process):
        raise TypeError(f"process must be a fastdiff.train.process.Process, got {arguments.described(process)}")
    expect(clip is None or arguments.number("clip", clip) > 0, f"clip must be positive, got {clip!r}")
    return arguments.state("x", x), arguments.number("guidance", guidance), arguments.number("scale", scale)


def _draws(
    process: Process,
    x: Tensor,
    generator: torch.Generator | None,
    interval: tuple[float, float],
    times: Sequence[float] | None,
    noise: Tensor | None,
) -> tuple[list[Point], Tensor]:
    """A point and a noise for each sample."""
    expect(
        generator is not None or (times is not None and noise is not None),
        "a generator is needed where times and noise are not given",
    )
    schedule = process.schedule
    if times is None:
        low, high = arguments.interval("interval", interval)
        expect(0 <= low < high <= 1, f"interval must be (low, high) in [0, 1], got {interval!r}")
        u = low + (high - low) * torch.rand(len(x), generator=generator, dtype=torch.float64)
        t = schedule.t_min + (schedule.t_max - schedule.t_min) * u
        if (n := getattr(schedule, "num_steps", None)) is not None:  # the steps that it was trained on
            t = (t * n).round() / n
        times = t.tolist()
    expect(len(times) == len(x), f"times must be one a sample ({len(x)}), got {len(times)}")
    if noise is None:
        noise = torch.randn(x.shape, generator=generator).to(x)
    expect(noise.shape == x.shape, f"noise must be like x, {tuple(x.shape)}, got {tuple(noise.shape)}")
    return schedule.points(times), noise


def _noise(
    network: Callable[..., Any],
    process: Process,
    x0: Tensor,
    eps: Tensor,
    points: list[Point],
    guidance: float,
    cond: Mapping[str, Any] | None,
    uncond: Mapping[str, Any] | None,
) -> Tensor:
    """eps_hat of x0 noised with eps, guided (Ho & Salimans 2022, Eq. 6)."""
    expect(guidance == 1 or uncond is not None, "guidance needs uncond, the network's arguments without the condition")
    cond = arguments.conditions("cond", cond, len(x0))
    u, t = process.inputs(x0, eps, points)
    if guidance == 1 or uncond is None:
        out = tensor_in(network(u, t, **cond))
    else:
        uncond = arguments.conditions("uncond", uncond, len(x0))
        if (both := join(cond, uncond, len(x0))) is not None:
            ours, theirs = tensor_in(network(torch.cat([u, u]), torch.cat([t, t]), **both)).chunk(2)
        else:
            ours, theirs = (tensor_in(network(u, t, **c)) for c in (cond, uncond))
        out = theirs + guidance * (ours - theirs)
    a, b = zip(*(process.prediction.eps(p) for p in points))
    y = _column([p.alpha for p in points], x0) * x0 + _column([p.sigma for p in points], x0) * eps
    return _column(a, x0) * y + _column(b, x0) * out.to(x0.dtype)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """(B, 1, ...): one number a sample."""
    return torch.tensor(values, dtype=torch.float64).to(like).view(-1, *[1] * (like.ndim - 1))


def _with_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """(B,): half the square of the gradient, with this gradient with respect to x."""
    return (0.5 * gradient.square() + gradient * (x - x.detach())).flatten(1).sum(1)
