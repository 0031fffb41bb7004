"""The variational bound of a discrete process, with fixed and learned variances (Ho et al. 2020, DDPM; Nichol &
Dhariwal 2021, Improved DDPM)."""

from __future__ import annotations

from math import log, pi, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.errors import expect, one_of
from fastdiff.train.chain import Chain
from fastdiff.train.losses.weighting import Weighting, plain
from fastdiff.train.process import Process
from fastdiff.train.terms import Network, full, mean_d, normal, rows

VARIANCES = ("small", "large", "learned", "learned-range")
KINDS = ("mse", "rescaled-mse", "kl", "rescaled-kl")


class Reverse(NamedTuple):
    """p(x at the step before | x): mean and log_variance; x0: what it is computed from; output: of the network, of
    which the mean is made."""

    mean: Tensor
    log_variance: Tensor
    x0: Tensor
    output: Tensor


class DDPMTerms(NamedTuple):
    """Of each sample, (B,). vb: bits per dimension."""

    loss: Tensor
    mse: Tensor | None
    vb: Tensor | None


def gaussian_kl(mean: Tensor, log_variance: Tensor, mean_p: Tensor, log_variance_p: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) | the same of p), entry by entry, in nats."""
    square = (mean - mean_p).square() * (-log_variance_p).exp()
    return 0.5 * (log_variance_p - log_variance + (log_variance - log_variance_p).exp() + square - 1)


def discretized_log_likelihood(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log of a normal's probability of the bin of x0, one of 256 values in [-1, 1], entry by entry (DDPM, Eq. 13), with
    the approximate distribution function and the limits of the original code."""

    def cdf(x: Tensor) -> Tensor:
        return 0.5 * (1 + (sqrt(2 / pi) * (x + 0.044715 * x**3)).tanh())

    inverse = (-0.5 * log_variance).exp()
    upper, lower = cdf(inverse * (x0 - mean + 1 / 255)), cdf(inverse * (x0 - mean - 1 / 255))
    inside = torch.where(x0 > 0.999, 1 - lower, upper - lower)
    return torch.where(x0 < -0.999, upper, inside).clamp(min=1e-12).log()


def reverse(
    network: Network,
    process: Process,
    x: Tensor,
    n: Tensor,
    *,
    variance: str = "small",
    clip: bool = False,
    **cond: Any,
) -> Reverse:
    """p(x at the step before | x) at steps n = 0 .. T-1, (B,), of a network with any prediction on a discrete schedule.

    variance: "small" (of the posterior), "large" (beta), or the second half v of the network's output: "learned", its
    logarithm, or "learned-range", (v + 1) / 2 of the way from small to large in the logarithm (Improved DDPM, Eq. 15).
    clip: x0 to [-1, 1]. Raises ValueError for another variance or one
    that the prediction has not, TypeError for a schedule without steps.
    """
    one_of("variance", variance, VARIANCES)
    learned = variance.startswith("learned")
    expect(
        learned == process.prediction.split,
        f"variance {variance!r} needs a prediction {'with' if learned else 'without'} a learned variance, got "
        f"{process.prediction.name!r}",
    )
    chain = Chain(process.schedule)
    points = process.at(chain.times(n))
    scale = rows([process.prediction.scale(p) for p in points], x)
    times = [process.prediction.time(process.schedule, p) for p in points]
    out = full(network(scale * x, torch.tensor(times, dtype=torch.float64).to(x), **cond))
    value = x[:0]
    if learned:
        out, value = out.chunk(2, dim=1)
    coefficients = [process.prediction.x0(p) for p in points]
    x0 = rows([a for a, _ in coefficients], x) * x + rows([b for _, b in coefficients], x) * out
    if clip:
        x0 = x0.clamp(-1, 1)
    small, large = chain.at(chain.posterior_log_variance, n, x), chain.at(chain.large_log_variance, n, x)
    if variance == "learned":
        log_variance = value
    elif variance == "learned-range":
        log_beta = chain.at(chain.log_betas, n, x)
        log_variance = 0.5 * ((value + 1) * log_beta + (1 - value) * small)
    else:
        log_variance = (small if variance == "small" else large).expand_as(x)
    if process.prediction.name.startswith("previous") and not clip:
        return Reverse(out, log_variance, x0, out)  # as it is, without the way over x0
    return Reverse(chain.posterior_mean(x0, x, n), log_variance, x0, out)


def bound_terms(chain: Chain, p: Reverse, x0: Tensor, x: Tensor, n: Tensor) -> Tensor:
    """(B,): the term of the variational bound at steps n in bits per dimension; at n = 0 the negative discretized
    log-likelihood of x0 (DDPM, Eq. 5)."""
    posterior = chain.posterior_mean(x0, x, n)
    log_variance = chain.at(chain.posterior_log_variance, n, x).expand_as(x)
    kl = mean_d(gaussian_kl(posterior, log_variance, p.mean, p.log_variance))
    likelihood = mean_d(discretized_log_likelihood(x0, p.mean, p.log_variance))
    return torch.where(n.to(x.device) == 0, -likelihood, kl) / log(2)


def ddpm_terms(
    network: Network,
    process: Process,
    batch: Tensor,
    generator: torch.Generator,
    *,
    variance: str = "small",
    kind: str = "mse",
    weighting: Weighting = plain,
    steps: Tensor | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> DDPMTerms:
    """`ddpm_loss` with its parts: the error of the network's output and the bound."""
    one_of("kind", kind, KINDS)
    chain = Chain(process.schedule)
    noise = normal(batch, generator, noise)
    if steps is None:
        steps = torch.randint(chain.steps, (len(batch),), generator=generator)
    x = chain.diffused(batch, noise, steps)
    plain_error = kind.endswith("mse")
    learned = process.prediction.split
    p = reverse(network, process, x, steps, variance=variance, **cond)
    if not plain_error:
        vb = bound_terms(chain, p, batch, x, steps)
        return DDPMTerms(vb * chain.steps if kind == "rescaled-kl" else vb, None, vb)
    points = process.at(chain.times(steps))
    mse = mean_d((p.output - process.target(batch, noise, points)).square())
    mse = mse * torch.tensor([weighting(process, point) for point in points], dtype=torch.float64).to(mse)
    if not learned:
        return DDPMTerms(mse, mse, None)
    vb = bound_terms(chain, p._replace(mean=p.mean.detach()), batch, x, steps)  # for the variance alone
    vb = vb * chain.steps / 1000 if kind == "rescaled-mse" else vb
    return DDPMTerms(mse + vb, mse, vb)


def ddpm_loss(network: Network, process: Process, batch: Tensor, generator: torch.Generator, **options: Any) -> Tensor:
    """The losses of DDPM and Improved DDPM, of each sample, (B,).

    process: a discrete schedule, of all steps or `Respaced`, and any prediction, with a second half ("eps+variance")
    for a learned variance. batch: x0, (B, ...), uint8 / 127.5 - 1 for bits per dimension. variance: see `reverse`.
    kind: "mse", the mean error of the output, plus the bound in bits per dimension where the variance is learned, whose
    gradient then reaches the variance alone; "rescaled-mse", the bound times T / 1000 (L_hybrid of Improved DDPM,
    Section 3.1); "kl", the bound; "rescaled-kl", T times it (L_vlb). weighting: of the error. steps: n = 0 .. T-1,
    (B,), uniform unless given (see `LossSecondMoments`). noise: drawn unless given. The rest are conditions of the
    network. Raises ValueError for an unknown variance or kind, and where variance and prediction do not fit, TypeError
    for a schedule without steps.
    """
    return ddpm_terms(network, process, batch, generator, **options).loss


class BitsPerDim(NamedTuple):
    """total, prior: (B,), bits per dimension. vb, x0_mse, eps_mse: (B, T), from the last step to the first."""

    total: Tensor
    prior: Tensor
    vb: Tensor
    x0_mse: Tensor
    eps_mse: Tensor


@torch.no_grad()
def bits_per_dim(
    network: Network,
    process: Process,
    batch: Tensor,
    generator: torch.Generator,
    *,
    variance: str = "small",
    clip: bool = True,
    noise: Tensor | None = None,
    **cond: Any,
) -> BitsPerDim:
    """The whole variational bound of each sample, step by step (Improved DDPM, Section 3).

    batch: (B, ...), uint8 / 127.5 - 1. clip: the predicted x0 to [-1, 1]. noise: (T, B, ...), of the steps from the
    last to the first; drawn unless given. The rest as in `ddpm_loss`.
    """
    chain = Chain(process.schedule)
    vb, x0_mse, eps_mse = [], [], []
    for number, step in enumerate(reversed(range(chain.steps))):
        n = torch.full((len(batch),), step)
        z = normal(batch, generator) if noise is None else noise[number]
        x = chain.diffused(batch, z, n)
        p = reverse(network, process, x, n, variance=variance, clip=clip, **cond)
        vb.append(bound_terms(chain, p, batch, x, n))
        x0_mse.append(mean_d((p.x0 - batch).square()))
        eps = (x - chain.alpha_bar[step] ** 0.5 * p.x0) / chain.variance[step] ** 0.5
        eps_mse.append(mean_d((eps - z).square()))
    mean, spread = chain.alpha_bar[-1] ** 0.5 * batch, batch.new_full((), log(chain.variance[-1]))
    prior = mean_d(gaussian_kl(mean, spread, torch.zeros_like(batch), torch.zeros_like(batch))) / log(2)
    steps = torch.stack(vb, 1)
    return BitsPerDim(steps.sum(1) + prior, prior, steps, torch.stack(x0_mse, 1), torch.stack(eps_mse, 1))
