"""Optimal variances of reverse steps, measured from a model, and what follows: the bound and the best steps.

Bao et al. 2022a, Analytic-DPM; Bao et al. 2022b, Estimating the Optimal Covariance with Imperfect Mean (SN and NPR).
Steps are n = 1 .. N of a discrete schedule, 0 is the data; the networks predict eps and receive the schedule's time,
n - 1 of the original process.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, pi, sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdiff.errors import expect, one_of, unknown
from fastdiff.process.schedules import Float64Array, Schedule, VPDiscrete
from fastdiff.train.losses.vlb import discretized_log_likelihood, gaussian_kl
from fastdiff.train.terms import Network, full, mean_d, normal, sum_d

OUTPUTS = ("eps", "eps_eps2", "eps_epsc", "eps_iddpm")


class Bars:
    """alpha_bar and 1 - alpha_bar of n = 0 .. N, each (N + 1,). Raises TypeError for a schedule without steps."""

    def __init__(self, schedule: Schedule) -> None:
        if not isinstance(schedule, VPDiscrete):
            raise TypeError(f"this needs a discrete schedule such as 'cosine' or 'linear', got {schedule!r}")
        self.log_alpha_bar = np.append(0.0, np.cumsum(np.log1p(-schedule.betas)))
        self.alpha_bar, self.variance = np.exp(self.log_alpha_bar), -np.expm1(self.log_alpha_bar)
        self.schedule, self.steps = schedule, schedule.num_steps

    def time(self, n: int, like: Tensor) -> Tensor:
        """(B,): the time of step n as the network receives it."""
        return like.new_full((len(like),), self.schedule.model_time(n / self.steps))

    def beta(self, s: Any, t: Any) -> Any:
        """1 - alpha_bar_t / alpha_bar_s: the variance added from s to t."""
        return -np.expm1(self.log_alpha_bar[t] - self.log_alpha_bar[s])

    def small(self, s: Any, t: Any) -> Any:
        """The variance of x_s given x_t and x0 (Ho et al. 2020, DDPM, Eq. 7)."""
        return self.beta(s, t) * self.variance[s] / self.variance[t]

    def optimal(self, s: Any, t: Any, covariance: Any, *, eta: float = 1.0) -> Any:
        """The optimal variance of the step from t to s, covariance: that of x0 given x_t (Bao et al. 2022a, Theorem 1).
        eta: 1 of DDPM, 0 of DDIM."""
        base = eta**2 * self.small(s, t)
        along = np.sqrt((self.variance[s] - base) * self.alpha_bar[t] / self.variance[t])
        return base + (np.sqrt(self.alpha_bar[s]) - along) ** 2 * covariance

    def x0_covariance(self, t: Any, eps_square: Any) -> Any:
        """That of x0 given x_t, of the mean of eps^2 (Bao et al. 2022a, Eq. 10)."""
        return self.variance[t] / self.alpha_bar[t] * (1 - eps_square)


@torch.no_grad()
def eps_mean_squares(
    network: Network,
    schedule: Schedule,
    batch: Tensor,
    generator: torch.Generator,
    *,
    noise: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """(N + 1, B): the mean square of the predicted eps at every step, row 0 zero; its mean over samples is what the
    variances need (Bao et al. 2022a, Eq. 8). noise: (N, B, ...), drawn unless given."""
    bars = Bars(schedule)
    found = [batch.new_zeros(len(batch))]
    for n in range(1, bars.steps + 1):
        z = normal(batch, generator) if noise is None else noise[n - 1]
        x = sqrt(bars.alpha_bar[n]) * batch + sqrt(bars.variance[n]) * z
        found.append(mean_d(full(network(x, bars.time(n, x), **cond)).square()))
    return torch.stack(found)


class Step(NamedTuple):
    """p(x_s | x_t): mean and variance, (B, ...)."""

    mean: Tensor
    variance: Tensor


def reverse_step(
    network: Network,
    schedule: Schedule,
    x: Tensor,
    s: int,
    t: int,
    *,
    output: str = "eps",
    sampler: str = "ddpm",
    eta: float = 1.0,
    variance: str = "optimal",
    clip: bool = True,
    average: bool = False,
    eps_square: Tensor | None = None,
    **cond: Any,
) -> Step:
    """p(x_s | x_t) with a variance measured or learned (Bao et al. 2022b, Section 4).

    output: "eps"; "eps_eps2", whose second half predicts eps^2 (SN-DPM), "eps_epsc", the square of the error (NPR-DPM),
    "eps_iddpm", the place between the two logarithms of variances. sampler: "ddpm" or "ddim" with eta, which keeps the
    network's eps where x0 is clipped. variance: "optimal", "small", "big". clip: x0 to [-1, 1], and its covariance to
    [0, 1]. average: the covariance over all axes. eps_square: (N + 1,), measured, instead of eps' own square for
    "eps". Raises ValueError for other names.
    """
    one_of("output", output, OUTPUTS)
    if sampler not in ("ddpm", "ddim"):
        raise unknown("sampler", sampler, ("ddpm", "ddim"))
    if variance not in ("optimal", "small", "big"):
        raise unknown("variance", variance, ("optimal", "small", "big"))
    bars = Bars(schedule)
    eta = eta if sampler == "ddim" else 1.0
    out = full(network(x, bars.time(t, x), **cond))
    eps, half = (out, out) if output == "eps" else out.chunk(2, dim=1)
    x0 = (x - sqrt(bars.variance[t]) * eps) / sqrt(bars.alpha_bar[t])
    x0 = x0.clamp(-1, 1) if clip else x0
    base = eta**2 * bars.small(s, t)
    if sampler == "ddpm":
        of_x0 = sqrt(bars.alpha_bar[s]) * bars.beta(s, t) / bars.variance[t]
        of_x = sqrt(bars.alpha_bar[t] / bars.alpha_bar[s]) * bars.variance[s] / bars.variance[t]
        mean = of_x0 * x0 + of_x * x
    else:
        mean = sqrt(bars.alpha_bar[s]) * x0 + sqrt(bars.variance[s] - base) * eps
    if variance != "optimal":
        return Step(mean, torch.full_like(x, base if variance == "small" else bars.beta(s, t)))
    if output == "eps_iddpm":
        expect(s > 0, "a learned logarithm has no step to the data")
        return Step(mean, (0.5 * ((half + 1) * log(bars.beta(s, t)) + (1 - half) * log(bars.small(s, t)))).exp())
    if output == "eps_epsc":
        covariance = bars.variance[t] / bars.alpha_bar[t] * half
    elif output == "eps" and eps_square is not None:
        covariance = torch.full_like(x, bars.x0_covariance(t, float(eps_square[t])))
    else:
        covariance = bars.variance[t] / bars.alpha_bar[t] * ((half if output == "eps_eps2" else 1) - eps.square())
    if average:
        covariance = mean_d(covariance).view(-1, *[1] * (x.ndim - 1)).expand_as(x)
    covariance = covariance.clamp(0, 1) if clip else covariance
    return Step(mean, bars.optimal(s, t, covariance, eta=eta))


@torch.no_grad()
def nelbo(
    network: Network,
    schedule: Schedule,
    batch: Tensor,
    generator: torch.Generator,
    *,
    timesteps: Sequence[int],
    noise: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """(K + 1, B): the terms of the negative bound in nats, sums over a sample, for timesteps 0 = t_0 < ... < t_K = N;
    their sum is the bound (Bao et al. 2022a, Section 5.1). batch: uint8 / 127.5 - 1.

    noise: (K, B, ...), from the last pair to the first, drawn unless given. options: of `reverse_step`.
    """
    bars = Bars(schedule)
    zero = torch.zeros_like(batch)
    end = sqrt(bars.alpha_bar[-1]) * batch
    terms = [sum_d(gaussian_kl(end, zero + log(bars.variance[-1]), zero, zero))]
    for number, k in enumerate(reversed(range(len(timesteps) - 1))):
        s, t = int(timesteps[k]), int(timesteps[k + 1])
        z = normal(batch, generator) if noise is None else noise[number]
        x = sqrt(bars.alpha_bar[t]) * batch + sqrt(bars.variance[t]) * z
        step = reverse_step(network, schedule, x, s, t, **options)
        if s == 0:
            spread = zero + log(bars.small(1, 2))
            terms.append(-sum_d(discretized_log_likelihood(batch, step.mean, spread)))
            continue
        of_x0 = sqrt(bars.alpha_bar[s]) * bars.beta(s, t) / bars.variance[t]
        of_x = sqrt(bars.alpha_bar[t] / bars.alpha_bar[s]) * bars.variance[s] / bars.variance[t]
        spread = zero + log(bars.small(s, t))
        terms.append(sum_d(gaussian_kl(of_x0 * batch + of_x * x, spread, step.mean, step.variance.log())))
    return torch.stack(terms[::-1])


@torch.no_grad()
def sample(
    network: Network,
    schedule: Schedule,
    x: Tensor,
    generator: torch.Generator,
    *,
    timesteps: Sequence[int],
    noise: Tensor | None = None,
    clip_steps: int = 0,
    clip_pixel: float = 2.0,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """(samples, variances (K-1,), their means over all entries) of the reverse process over timesteps 1 .. N,
    increasing, and from the first of them to the data without noise.

    noise: (K-1, B, ...) in order of use, drawn unless given. clip_steps: the variances of steps that arrive at or below
    that many first timesteps are at most (2 clip_pixel / 255 sqrt(pi / 2))^2 (Bao et al. 2022a, Appendix F). options:
    of `reverse_step`.
    """
    ends = [0, *(int(n) for n in timesteps)]
    variances: list[Tensor] = []
    limit = (2 * clip_pixel / 255 * sqrt(pi / 2)) ** 2
    for number, k in enumerate(reversed(range(len(ends) - 1))):
        s, t = ends[k], ends[k + 1]
        step = reverse_step(network, schedule, x, s, t, **({**options, "variance": "small"} if s == 0 else options))
        if s == 0:
            return step.mean, torch.stack(variances)
        variance = step.variance.clamp(min=0)
        if clip_steps and s <= ends[clip_steps]:
            variance = variance.clamp(max=limit)
        variances.append(variance.mean())
        x = step.mean + variance.sqrt() * (normal(x, generator) if noise is None else noise[number])
    raise ValueError("timesteps must not be empty")


def trajectory(kind: str, schedule: Schedule, count: int, *, eps_square: Float64Array | None = None) -> list[int]:
    """`count` steps of 1 .. N, increasing: "linear"; "quad_ddim" (Song et al. 2021, DDIM); "dp_seg", the path with the
    best bound by dynamic programming (Bao et al. 2022a, Theorem 4; Watson et al. 2021), of the mean squares of eps (N +
    1,). Raises ValueError for another kind, and where dp_seg lacks them."""
    bars = Bars(schedule)
    n = bars.steps
    if kind == "linear":
        found, place = [], 1.0
        for _ in range(count):
            found.append(round(place))
            place += (n - 1) / (count - 1)
        return found
    if kind == "quad_ddim":
        return [int(x) + 1 for x in np.linspace(0, sqrt(0.8 * n), count) ** 2]
    if kind != "dp_seg":
        raise unknown("kind", kind, ("linear", "quad_ddim", "dp_seg"))
    if eps_square is None:
        raise ValueError("dp_seg needs eps_square, see eps_mean_squares")
    score = np.asarray(eps_square)[1:] / bars.variance[1:]
    steps = np.arange(1, n + 1)
    cost = np.full((n, n), np.inf)  # from s to t
    for t in range(1, n):
        cost[:t, t] = np.log(1 - bars.beta(steps[:t], steps[t]) * score[t])
    best, origin = np.full(n, np.inf), []
    best[0] = 0.0
    for _ in range(count - 1):
        total = best[:, None] + cost
        origin.append(total.argmin(0))
        best = total.min(0)
    path = [n - 1]
    for back in reversed(origin):
        path.append(int(back[path[-1]]))
    return [int(steps[k]) for k in reversed(path)]
