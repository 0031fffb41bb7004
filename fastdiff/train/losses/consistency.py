"""Consistency models (Song et al. 2023; Song & Dhariwal 2023, Improved Techniques): networks and losses.

The networks here are functions f(x, sigma) of a noisy picture and its noise levels, (B,), that return a denoised one;
`parametrized` makes one of a raw network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.errors import expect, one_of, unknown
from fastdiff.train.terms import Network, full, mean_d, normal, rows, sum_d

WEIGHTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "uniform": lambda t, sd: torch.ones_like(t),
    "snr": lambda t, sd: t**-2,
    "snr+1": lambda t, sd: t**-2 + 1,
    "karras": lambda t, sd: t**-2 + sd**-2,
    "truncated-snr": lambda t, sd: (t**-2).clamp(min=1),
}


@dataclass(frozen=True)
class ConsistencyProcess:
    """Noise levels from sigma_min to sigma_max, and the deviation of the data. Raises ValueError for levels that do not
    increase."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        expect(
            0 < self.sigma_min < self.sigma_max,
            f"0 < sigma_min < sigma_max must hold, got {self.sigma_min!r} and {self.sigma_max!r}",
        )

    def level(self, u: Tensor) -> Tensor:
        """sigma_max at u = 0, sigma_min at u = 1 (Karras et al. 2022, EDM, Eq. 5), in float64 on
        the CPU."""
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return (high + u.cpu().double() * (low - high)) ** self.rho

    def grid(self, count: int) -> Tensor:
        """(count,) levels, ascending (Song et al. 2023, Section 2)."""
        return self.level(torch.arange(count - 1, -1, -1, dtype=torch.float64) / (count - 1))

    def scalings(self, sigma: Tensor, *, boundary: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in); with boundary, c_skip = 1 and c_out = 0 at sigma_min (Song et al. 2023, Appendix C),
        else EDM's."""
        sd = self.sigma_data
        total = sigma**2 + sd**2
        if not boundary:
            return sd**2 / total, sigma * sd / total.sqrt(), total.rsqrt()
        above = sigma - self.sigma_min
        return sd**2 / (above**2 + sd**2), above * sd / total.sqrt(), total.rsqrt()

    def weights(self, sigma: Tensor, weight: str) -> Tensor:
        """(B,), of the name in `WEIGHTS`. Raises ValueError for another one."""
        one_of("weight", weight, WEIGHTS)
        return WEIGHTS[weight](sigma, self.sigma_data)


def noise_time(sigma: Tensor) -> Tensor:
    """250 ln sigma: the time that the original's networks receive."""
    return 250 * sigma.log()


def parametrized(
    network: Network,
    process: ConsistencyProcess,
    *,
    boundary: bool = True,
    time: Callable[[Tensor], Tensor] = noise_time,
) -> Network:
    """f(x, sigma) = c_skip x + c_out network(c_in x, time(sigma)) (Song et al. 2023, Eq. 5). boundary: without it,
    EDM's denoiser, as a teacher is."""

    def f(x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        c_skip, c_out, c_in = (rows(c, x) for c in process.scalings(sigma, boundary=boundary))
        return c_skip * x + c_out * full(network(c_in * x, time(sigma).to(x), **cond))

    return f


def distance(a: Tensor, b: Tensor, norm: str) -> Tensor:
    """(B,): mean square ("l2") or mean absolute ("l1") difference. Raises ValueError for another norm."""
    if norm not in ("l1", "l2"):
        raise unknown("norm", norm, ("l1", "l2"))
    return mean_d((a - b).square() if norm == "l2" else (a - b).abs())


class ConsistencyTerms(NamedTuple):
    """Of each sample: loss (B,), the two levels (B,), the two states and the target (B, ...)."""

    loss: Tensor
    t: Tensor
    t_next: Tensor
    x: Tensor
    x_next: Tensor
    target: Tensor


def consistency_terms(
    network: Network,
    process: ConsistencyProcess,
    batch: Tensor,
    generator: torch.Generator,
    *,
    target: Network,
    scales: int,
    teacher: Network | None = None,
    solver: str = "heun",
    norm: str = "l2",
    weight: str = "uniform",
    index: Tensor | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> ConsistencyTerms:
    """`consistency_loss` with the states and the target."""
    expect(scales >= 2, f"scales must be at least 2, got {scales}")
    if solver not in ("heun", "euler"):
        raise unknown("solver", solver, ("heun", "euler"))
    z = normal(batch, generator, noise)
    i = torch.randint(scales - 1, (len(batch),), generator=generator) if index is None else index
    t, t_next = (process.level(k / (scales - 1)).to(batch) for k in (i.double(), i.double() + 1))
    x = batch + rows(t, batch) * z
    step = rows(t_next - t, batch)
    with torch.no_grad():
        slope = (x - (batch if teacher is None else teacher(x, t, **cond))) / rows(t, batch)
        x_next = x + step * slope
        if solver == "heun":
            end = batch if teacher is None else teacher(x_next, t_next, **cond)
            x_next = x + step * 0.5 * (slope + (x_next - end) / rows(t_next, batch))
        goal = target(x_next, t_next, **cond)
    loss = process.weights(t, weight) * distance(network(x, t, **cond), goal, norm)
    return ConsistencyTerms(loss, t, t_next, x, x_next, goal)


def consistency_loss(
    network: Network, process: ConsistencyProcess, batch: Tensor, generator: torch.Generator, **options: Any
) -> Tensor:
    """Distance of f at one noise level from the target network at the next one, of each sample, (B,) (Song et al. 2023,
    Algorithms 2 and 3).

    network, target, teacher: f(x, sigma), see `parametrized`; target is the average of the network. teacher: a
    denoiser, one step of whose flow leads to the next level (distillation); none to use the data (training). batch: x0,
    (B, ...). scales: levels of the grid. solver: "heun" or "euler". norm: "l2" or "l1". weight: a name in `WEIGHTS`.
    index: (B,), 0 .. scales - 2, 0 the largest level; noise: drawn unless given. The rest are conditions. Raises
    ValueError for an unknown solver, norm or weight, and fewer than two levels.
    """
    return consistency_terms(network, process, batch, generator, **options).loss


def improved_indices(sigmas: Tensor, *, mean: float = -1.1, std: float = 2.0) -> Tensor:
    """(N-1,): the probability of each pair of ascending levels, of a log-normal (Song & Dhariwal 2023, Section 3.5)."""
    edges = torch.erf((sigmas.log() - mean) / (sqrt(2) * std))
    return (edges[1:] - edges[:-1]) / (edges[-1] - edges[0])


def improved_consistency_loss(
    network: Network,
    process: ConsistencyProcess,
    batch: Tensor,
    generator: torch.Generator,
    *,
    scales: int,
    mean: float = -1.1,
    std: float = 2.0,
    huber_c: float | None = None,
    weight: str = "inverse-step",
    index: Tensor | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """Pseudo-Huber distance of f at neighbouring noise levels, the lower one of the same weights without gradient, of
    each sample, (B,) (Song & Dhariwal 2023, Improved Techniques, Section 3).

    network: f(x, sigma). scales: levels. mean, std: of the log of the level (see `improved_indices`). huber_c: 0.00054
    sqrt(D) unless given. weight: "inverse-step", 1 / (sigma_i+1 - sigma_i), or "uniform". index: (B,), 0 .. scales - 2,
    0 the smallest level; noise: drawn unless given. Raises ValueError for another weight.
    """
    if weight not in ("inverse-step", "uniform"):
        raise unknown("weight", weight, ("inverse-step", "uniform"))
    sigmas = process.grid(scales)
    z = normal(batch, generator, noise)
    if index is None:
        chances = improved_indices(sigmas, mean=mean, std=std)
        index = torch.multinomial(chances, len(batch), replacement=True, generator=generator)
    low, high = (sigmas[index.cpu() + k].to(batch) for k in (0, 1))
    c = 0.00054 * sqrt(batch[0].numel()) if huber_c is None else huber_c
    with torch.no_grad():
        goal = network(batch + rows(low, batch) * z, low, **cond)
    error = network(batch + rows(high, batch) * z, high, **cond) - goal
    loss = (sum_d(error.square()) + c**2).sqrt() - c
    return loss / (high - low) if weight == "inverse-step" else loss


def denoiser_loss(
    network: Network,
    process: ConsistencyProcess,
    batch: Tensor,
    generator: torch.Generator,
    *,
    sigma: Tensor,
    weight: str = "karras",
    noise: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """Weighted mean square of f(x0 + sigma n, sigma) - x0, of each sample, (B,) (Karras et al. 2022, EDM, Eq. 2).
    sigma: (B,). weight: a name in `WEIGHTS`."""
    z = normal(batch, generator, noise)
    found = network(batch + rows(sigma, batch) * z, sigma.to(batch), **cond)
    return process.weights(sigma, weight).to(found) * distance(found, batch, "l2")


def progressive_edm_terms(
    network: Network,
    process: ConsistencyProcess,
    batch: Tensor,
    generator: torch.Generator,
    *,
    teacher: Network,
    scales: int,
    norm: str = "l2",
    weight: str = "uniform",
    index: Tensor | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> ConsistencyTerms:
    """Progressive distillation on noise levels: two Euler steps of the teacher, a denoiser, for one of the student's
    `scales` steps (Song et al. 2023, Appendix; Salimans & Ho 2022). index: (B,), 0 .. scales - 1, 0 the largest level.
    """
    z = normal(batch, generator, noise)
    i = torch.randint(scales, (len(batch),), generator=generator) if index is None else index
    first, middle, last = (process.level((i.double() + k) / scales).to(batch) for k in (0, 0.5, 1))
    t1, t2, t3 = (rows(t, batch) for t in (first, middle, last))
    x = batch + t1 * z
    with torch.no_grad():
        x2 = x + (t2 - t1) * (x - teacher(x, first, **cond)) / t1
        x3 = x2 + (t3 - t2) * (x2 - teacher(x2, middle, **cond)) / t2
        goal = x - t1 * (x3 - x) / (t3 - t1)
    loss = process.weights(first, weight) * distance(network(x, first, **cond), goal, norm)
    return ConsistencyTerms(loss, first, last, x, x3, goal)
