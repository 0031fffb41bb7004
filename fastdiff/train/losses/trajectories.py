"""Diffusion of state trajectories with the first state known (Ajay et al. 2023, Decision Diffuser)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.train.chain import Chain
from fastdiff.train.process import Process
from fastdiff.train.terms import Network, full, mean_d, normal, rows


def with_first(x: Tensor, first: Tensor) -> Tensor:
    """x (B, horizon, S) with the first state (B, S) put in its place."""
    return torch.cat([first[:, None], x[:, 1:]], 1)


def trajectory_loss(
    network: Network,
    process: Process,
    batch: Tensor,
    generator: torch.Generator,
    *,
    discount: float = 1.0,
    steps: Tensor | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """Weighted mean square error of the output over states (B, horizon, S), of each sample, (B,) (Ajay et al. 2023, Eq.
    7). The first state is set to the true one after noising.

    process: a discrete schedule, and "eps" or "x0". Weights are discount^h with mean 1; the first is 0 for "eps", where
    the output says nothing of it; for "x0" the output's first state is the true one. steps: n = 0 .. T-1, (B,), noise:
    drawn unless given. Raises ValueError for another prediction, TypeError for a schedule without steps.
    """
    kind = process.prediction.name
    expect(kind in ("eps", "x0"), f"prediction must be 'eps' or 'x0' for trajectories, got {kind!r}")
    chain = Chain(process.schedule)
    z = normal(batch, generator, noise)
    if steps is None:
        steps = torch.randint(chain.steps, (len(batch),), generator=generator)
    x = with_first(chain.diffused(batch, z, steps), batch[:, 0])
    times = [process.prediction.time(process.schedule, p) for p in process.at(chain.times(steps))]
    out = full(network(x, torch.tensor(times, dtype=torch.float64).to(x), **cond))
    weights = discount ** torch.arange(batch.shape[1], dtype=torch.float64, device=batch.device)
    weights = weights / weights.mean()
    if kind == "eps":
        weights[0] = 0
        error = out - z
    else:
        error = with_first(out, batch[:, 0]) - batch
    return mean_d(weights.to(error)[:, None] * error.square())


def inverse_dynamics_loss(network: Network, states: Tensor, actions: Tensor) -> Tensor:
    """Mean square error of the action between two states, of each sample, (B,) (Ajay et al. 2023, Eq. 6). network:
    pairs (B, horizon - 1, 2 S) to (B, horizon - 1, A). states: (B, horizon, S), actions: (B, horizon, A)."""
    return mean_d((full(network(torch.cat([states[:, :-1], states[:, 1:]], -1))) - actions[:, :-1]).square())


@torch.no_grad()
def trajectory_step(
    network: Network,
    process: Process,
    x: Tensor,
    steps: Tensor,
    *,
    uncond: dict[str, Any] | None = None,
    guidance: float = 0.0,
    clip: bool = True,
    **cond: Any,
) -> tuple[Tensor, Tensor]:
    """(mean (B, horizon, S), log variance (B, 1, 1)) of the state one step before n = 0 .. T-1, (B,).

    uncond: with it, the output is that of uncond plus `guidance` times the difference. clip: x0 to [-1, 1].
    """
    chain = Chain(process.schedule)
    points = process.at(chain.times(steps))
    times = torch.tensor([process.prediction.time(process.schedule, p) for p in points], dtype=torch.float64).to(x)
    out = full(network(x, times, **cond))
    if uncond is not None:
        without = full(network(x, times, **uncond))
        out = without + guidance * (out - without)
    pairs = [process.prediction.x0(p) for p in points]
    x0 = rows([a for a, _ in pairs], x) * x + rows([b for _, b in pairs], x) * out
    mean = chain.posterior_mean(x0.clamp(-1, 1) if clip else x0, x, steps)
    variance = chain.at(chain.posterior_variance, steps, x).clamp(min=1e-20)
    return mean, variance.log()


@torch.no_grad()
def sample_trajectories(
    network: Network,
    process: Process,
    first: Tensor,
    generator: torch.Generator,
    *,
    horizon: int,
    start: Tensor | None = None,
    noise: Tensor | None = None,
    temperature: float = 0.5,
    **options: Any,
) -> Tensor:
    """States (B, horizon, S) that begin with `first` (B, S), by DDPM's steps with noise times `temperature`, at the
    start too (Ajay et al. 2023, Algorithm 1). start: (B, horizon, S), noise: (T, B, horizon, S), in order of use, drawn
    unless given. options: of `trajectory_step`."""
    chain = Chain(process.schedule)
    shape = first[:, None].expand(-1, horizon, -1)
    x = with_first(temperature * (normal(shape, generator) if start is None else start), first)
    for number, n in enumerate(reversed(range(chain.steps))):
        mean, log_variance = trajectory_step(network, process, x, torch.full((len(x),), n), **options)
        z = normal(shape, generator) if noise is None else noise[number]
        x = with_first(mean + (temperature * (0.5 * log_variance).exp() * z if n else 0), first)
    return x
