"""A discrete process as tables, for losses that need the posterior of the step before (Ho et al. 2020, DDPM)."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fastdiff.process.prediction import Coefficients, Prediction
from fastdiff.process.schedules import Float64Array, Point, Schedule, VPDiscrete
from fastdiff.train.terms import rows


class Chain:
    """Tables of a discrete process over its steps n = 0 .. T-1, each (T,) in float64.

    alpha_bar, alpha_bar_before: the products at the step and at the one before, which is 1 at first. variance:
    1 - alpha_bar. posterior_variance: of x at the step before, given x and x0; posterior_log_variance: its logarithm,
    the first entry, which is log 0, replaced by the second; large_log_variance: that of beta, with the same first
    entry. of_x0, of_x: the posterior mean is of_x0 x0 + of_x x (DDPM, Eq. 6 and 7). Raises TypeError for a schedule
    without steps.
    """

    def __init__(self, schedule: Schedule) -> None:
        if not isinstance(schedule, VPDiscrete):
            raise TypeError(f"this loss needs a discrete schedule such as 'cosine' or 'linear', got {schedule!r}")
        self.schedule, self.steps = schedule, schedule.num_steps
        log_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-schedule.betas))])
        self.betas, self.alpha_bar, self.alpha_bar_before = schedule.betas, np.exp(log_bar[1:]), np.exp(log_bar[:-1])
        self.variance, variance_before = -np.expm1(log_bar[1:]), -np.expm1(log_bar[:-1])
        self.posterior_variance = self.betas * variance_before / self.variance
        self.of_x0 = self.betas * np.sqrt(self.alpha_bar_before) / self.variance
        self.of_x = variance_before * np.sqrt(1 - self.betas) / self.variance

    @cached_property
    def posterior_log_variance(self) -> Float64Array:
        return np.log(np.append(self.posterior_variance[1:2], self.posterior_variance[1:]))

    @cached_property
    def large_log_variance(self) -> Float64Array:
        return np.log(np.append(self.posterior_variance[1:2], self.betas[1:]))

    @cached_property
    def log_betas(self) -> Float64Array:
        return np.log(self.betas)

    def at(self, table: Float64Array, n: Tensor, like: Tensor) -> Tensor:
        """The entries of a table at steps n, (B,), as (B, 1, ...)."""
        return rows(torch.from_numpy(table)[n.cpu()], like)

    def times(self, n: Tensor) -> Float64Array:
        """The schedule's times of the steps."""
        return np.asarray((n.double().cpu() + 1) / self.steps)

    def diffused(self, x0: Tensor, noise: Tensor, n: Tensor) -> Tensor:
        """sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise at steps n, (B,)."""
        root, sigma = np.sqrt(self.alpha_bar), np.sqrt(self.variance)
        return self.at(root, n, x0) * x0 + self.at(sigma, n, x0) * noise

    def posterior_mean(self, x0: Tensor, x: Tensor, n: Tensor) -> Tensor:
        """Of the state at the step before, given x at step n and x0."""
        return self.at(self.of_x0, n, x) * x0 + self.at(self.of_x, n, x) * x


def previous(schedule: VPDiscrete) -> Prediction:
    """The posterior mean of the state one step before, "PREVIOUS_X" of guided-diffusion (Ho et al. 2020, DDPM, 3.2)."""
    chain = Chain(schedule)

    def parts(p: Point) -> Coefficients:
        n = round(p.t * chain.steps) - 1
        return float(chain.of_x0[n]), float(chain.of_x[n])

    def x0(p: Point) -> Coefficients:
        of_x0, of_x = parts(p)
        return -of_x / of_x0, 1 / of_x0

    def eps(p: Point) -> Coefficients:
        of_x0, of_x = parts(p)
        return (1 + p.alpha * of_x / of_x0) / p.sigma, -p.alpha / (p.sigma * of_x0)

    return Prediction("previous", x0=x0, eps=eps, source="Ho et al. 2020, DDPM, Section 3.2")
