"""Flow matching and rectified flow: the velocity of a path from noise (t = 0) to data (t = 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.errors import expect, unknown
from fastdiff.process.schedules import Schedule
from fastdiff.train.terms import Network, full, normal, reduced, rows, times_of, uniform


@dataclass(frozen=True)
class AffinePath:
    """x_t = a(t) x1 + s(t) x0, x1 data, x0 noise, t from 0 to 1 (Lipman et al. 2023, Flow Matching, Section 4).

    scales: t, (B,) in float64 on the CPU, to a, s and their derivatives in t.
    """

    name: str
    scales: Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
    source: str

    @classmethod
    def of_schedule(cls, schedule: Schedule) -> AffinePath:
        """The path that a schedule goes the other way: its time is t_max (1 - t)."""

        def scales(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            times = np.asarray(schedule.t_max * (1 - t.double().cpu()))
            points = schedule.points(times)
            rates = [schedule.rates(p.t) for p in points]
            values = [(p.alpha, p.sigma, -r[0] * schedule.t_max, -r[1] * schedule.t_max) for p, r in zip(points, rates)]
            a, s, da, ds = torch.tensor(values, dtype=torch.float64).unbind(1)
            return a, s, da, ds

        return cls(f"of {schedule.name}", scales, "Lipman et al. 2023, Flow Matching, Section 4")

    def _at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, s, da, ds = (rows(value, like) for value in self.scales(t.detach().cpu().double()))
        return a, s, da, ds

    def sample(self, x1: Tensor, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x_t, velocity), each (B, ...), of data x1, noise x0 and times (B,)."""
        a, s, da, ds = self._at(t, x1)
        return a * x1 + s * x0, da * x1 + ds * x0

    def target_to_velocity(self, x1: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at x, given the data that it goes to."""
        a, s, da, ds = self._at(t, x)
        return ds / s * x + (da - ds * a / s) * x1

    def epsilon_to_velocity(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at x, given the noise that it comes from."""
        a, s, da, ds = self._at(t, x)
        return da / a * x + (ds - da * s / a) * x0

    def velocity_to_target(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The data that x goes to with this velocity."""
        a, s, da, ds = self._at(t, x)
        return (s * velocity - ds * x) / (da * s - ds * a)

    def velocity_to_epsilon(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The noise that x comes from with this velocity."""
        a, s, da, ds = self._at(t, x)
        return (a * velocity - da * x) / (ds * a - da * s)


def cond_ot(sigma_min: float = 0.0) -> AffinePath:
    """Straight lines, a = t, s = 1 - (1 - sigma_min) t (Lipman et al. 2023, Eq. 22)."""
    source = "Lipman et al. 2023, Flow Matching, Eq. 22"
    k = 1 - sigma_min
    return AffinePath("cond-ot", lambda t: (t, 1 - k * t, torch.ones_like(t), -k * torch.ones_like(t)), source)


def polynomial(n: float) -> AffinePath:
    """a = t^n, s = 1 - t^n (Lipman et al. 2024, Flow Matching Guide and Code). Raises ValueError unless n > 0."""
    expect(n > 0, f"n must be positive, got {n!r}")
    source = "Lipman et al. 2024, Flow Matching Guide and Code, Section 4.7"
    return AffinePath("polynomial", lambda t: (t**n, 1 - t**n, n * t ** (n - 1), -n * t ** (n - 1)), source)


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> AffinePath:
    """That of the variance-preserving SDE (Lipman et al. 2023, Eq. 19)."""

    def scales(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u = 1 - t
        total = 0.5 * u**2 * (beta_max - beta_min) + u * beta_min
        rate = -(u * (beta_max - beta_min) + beta_min)  # d total / dt
        a, s = (-0.5 * total).exp(), (-torch.expm1(-total)).sqrt()
        return a, s, -0.5 * rate * a, 0.5 * rate * (-total).exp() / s

    return AffinePath("vp", scales, "Lipman et al. 2023, Flow Matching, Eq. 19")


def linear_vp() -> AffinePath:
    """a = t, s = sqrt(1 - t^2) (Lipman et al. 2024, Flow Matching Guide and Code)."""
    source = "Lipman et al. 2024, Flow Matching Guide and Code, Section 4.7"
    return AffinePath("linear-vp", lambda t: (t, (1 - t**2).sqrt(), torch.ones_like(t), -t / (1 - t**2).sqrt()), source)


def cosine() -> AffinePath:
    """a = sin(pi t / 2), s = cos(pi t / 2) (Lipman et al. 2024, Flow Matching Guide and Code)."""
    h = pi / 2
    source = "Lipman et al. 2024, Flow Matching Guide and Code, Section 4.7"
    return AffinePath("cosine", lambda t: ((h * t).sin(), (h * t).cos(), h * (h * t).cos(), -h * (h * t).sin()), source)


PATHS: dict[str, Callable[..., AffinePath]] = {
    "cond-ot": cond_ot,
    "polynomial": polynomial,
    "vp": vp,
    "linear-vp": linear_vp,
    "cosine": cosine,
}


def get_path(path: str | AffinePath | Schedule) -> AffinePath:
    """The path of that name or of a schedule. Raises ValueError that lists the names, TypeError for something else."""
    if isinstance(path, AffinePath):
        return path
    if isinstance(path, Schedule):
        return AffinePath.of_schedule(path)
    if not isinstance(path, str):
        raise TypeError(f"path must be a name, an AffinePath or a Schedule, got {type(path).__name__}")
    if path not in PATHS:
        raise unknown("path", path, PATHS)
    return PATHS[path]()


def flow_matching_loss(
    network: Network,
    path: str | AffinePath | Schedule,
    batch: Tensor,
    generator: torch.Generator,
    *,
    reduction: str = "mean",
    times: Tensor | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """Squared error of the network, the velocity at x_t, of each sample, (B,) (Lipman et al. 2023, Eq. 9).

    network: called with t in [0, 1], 1 at the data. path: see `AffinePath`. batch: x1, (B, ...). times: (B,), uniform
    unless given. noise: x0, drawn unless given; a pairing of data and noise may be given so.
    """
    x0 = normal(batch, generator, noise)
    t = uniform(len(batch), generator) if times is None else times_of(times, len(batch))
    x, velocity = get_path(path).sample(batch, x0, t)
    return reduced((full(network(x, t.to(x), **cond)) - velocity).square(), reduction)


def flow_times(u: Tensor, schedule: str | int = "uniform", *, first: float = 1e-3) -> Tensor:
    """Times of a rectified flow (Liu et al. 2023): "uniform" on [first, 1], "t0" first, "t1" 1, or one of k equal
    steps, of which u holds the numbers 0 .. k-1. u: (B,) in [0, 1) otherwise. Raises ValueError for other schedules."""
    if isinstance(schedule, int):
        return u * (1 - first) / schedule + first
    if schedule not in ("uniform", "t0", "t1"):
        raise unknown("schedule of times", schedule, ("uniform", "t0", "t1", "an integer"))
    return u * (1 - first) + first if schedule == "uniform" else torch.full_like(u, first if schedule == "t0" else 1.0)


@torch.no_grad()
def euler_pairs(teacher: Network, noise: Tensor, steps: int, *, first: float = 1e-3, **cond: Any) -> Tensor:
    """Where the teacher's flow takes noise (B, ...): the data of reflow (Liu et al. 2023, Rectified Flow, Section 2.2).

    Euler steps of length 1 / steps at times k / steps (1 - first) + first, as the original has them.
    """
    x = noise
    for k in range(steps):
        t = torch.full((len(x),), k / steps * (1 - first) + first, dtype=torch.float64).to(x)
        x = x + teacher(x, t, **cond) / steps
    return x


def kl_of_normals(mean: Tensor, log_variance: Tensor, prior_mean: Any = 0.0, prior_variance: Any = 1.0) -> Tensor:
    """KL(N(mean, exp(log_variance)) | N(prior_mean, prior_variance)) entry by entry, in nats."""
    prior_variance = torch.as_tensor(prior_variance, dtype=mean.dtype, device=mean.device)
    square = (mean - prior_mean).square() / prior_variance
    return 0.5 * (square + log_variance.exp() / prior_variance - 1 - log_variance + prior_variance.log())


def curvature_loss(
    network: Network,
    encoder: Network | None,
    batch: Tensor,
    generator: torch.Generator,
    *,
    first: float = 1e-5,
    times: Tensor | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> tuple[Tensor, Tensor]:
    """The flow from data (t = 0) to noise that an encoder has paired with them, and the encoder's divergence from the
    normal: two losses (B,), means over a sample (Lee et al. 2023, Minimizing Trajectory Curvature, Eq. 10).

    encoder: (x, 1) -> mean and log variance, of twice the channels; gradients reach it through the pairing too. None:
    noise as it is drawn, and no divergence. first: times begin there. The loss is the first plus a weight times the
    second.
    """
    z1 = normal(batch, generator, noise)
    prior = batch.new_zeros(len(batch))
    if encoder is not None:
        mean, log_variance = full(encoder(batch, batch.new_ones(len(batch)), **cond)).chunk(2, dim=1)
        z1 = mean + (0.5 * log_variance).exp() * z1
        prior = reduced(kl_of_normals(mean, log_variance), "mean")
    drawn = times is None
    t = uniform(len(batch), generator) * (1 - first) + first if drawn else times_of(times, len(batch))
    r = rows(t, batch)
    error = z1 - batch - full(network(r * z1 + (1 - r) * batch, t.to(batch), **cond))
    return reduced(error.square(), "mean"), prior


def one_step_loss(network: Network, x0: Tensor, z1: Tensor, **cond: Any) -> Tensor:
    """Squared error of one step from noise z1 to the data x0 that the teacher's flow gives for it, (B,): the student's
    velocity at t = 1 (Lee et al. 2023, Minimizing Trajectory Curvature, Section 4)."""
    return reduced((z1 - full(network(z1, z1.new_ones(len(z1)), **cond)) - x0).square(), "mean")


def straightness(trajectory: Tensor) -> Tensor:
    """How far a trajectory (n+1, B, ...) is from straight: the mean of |n (z_i - z_i+1) - (z_0 - z_n)|^2 over steps,
    samples and axes; 0 for a line (Liu et al. 2023, Rectified Flow, Eq. 3)."""
    n = len(trajectory) - 1
    return (n * (trajectory[:-1] - trajectory[1:]) - (trajectory[0] - trajectory[-1])).square().mean()


def vp_pair(
    x0: Tensor, z1: Tensor, t: Tensor, *, beta_min: float = 0.1, beta_max: float = 20.0
) -> tuple[Tensor, Tensor]:
    """State and velocity on the variance-preserving path from data x0 (t = 0) to z1, which may depend on x0."""
    path = vp(beta_min, beta_max)
    x, velocity = path.sample(x0, z1, 1 - t)
    return x, -velocity
