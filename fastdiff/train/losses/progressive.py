"""Progressive distillation (Salimans & Ho 2022): one step of the student for two of the teacher, on any schedule."""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdiff.errors import expect, one_of, unknown
from fastdiff.process.prediction import PREDICTIONS
from fastdiff.process.schedules import Float64Array, Point
from fastdiff.train.losses.vlb import gaussian_kl
from fastdiff.train.process import Process
from fastdiff.train.terms import Network, full, mean_d, normal, rows, uniform

BOTH = replace(PREDICTIONS["x0"], name="x0+eps", split=True)  # x0 in the first half of the output, eps in the second
WEIGHTS = ("constant", "snr", "snr+1", "snr_trunc", "v_mse")


class Views(NamedTuple):
    """What a network says of a state: x0, eps and v = alpha eps - sigma x0, each (B, ...)."""

    x0: Tensor
    eps: Tensor
    v: Tensor


class Distilled(NamedTuple):
    """z: the state; target: what the network is compared with there; found: what it says; loss: (B,)."""

    loss: Tensor
    z: Tensor
    target: Views
    found: Views


def scales(points: list[Point], like: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma), each (B, 1, ...)."""
    return rows([p.alpha for p in points], like), rows([p.sigma for p in points], like)


def views(network: Network, process: Process, z: Tensor, points: list[Point], **cond: Any) -> Views:
    """x0, eps and v of a network with any prediction, or with `BOTH`, whose two halves are mixed by sigma^2 and alpha^2
    (Salimans & Ho 2022, Section 4)."""
    kind = process.prediction
    times = torch.tensor([kind.time(process.schedule, p) for p in points], dtype=torch.float64).to(z)
    out = full(network(rows([kind.scale(p) for p in points], z) * z, times, **cond))
    alpha, sigma = scales(points, z)
    if kind.name == BOTH.name:
        direct, eps = out.chunk(2, dim=1)
        x0 = sigma**2 * direct + alpha * (z - sigma * eps)
        eps = (z - alpha * x0) / sigma
        return Views(x0, eps, alpha * eps - sigma * x0)
    process.expect_single()
    x0, eps = (
        rows([a for a, _ in pairs], z) * z + rows([b for _, b in pairs], z) * out
        for pairs in ([kind.x0(p) for p in points], [kind.eps(p) for p in points])
    )
    return Views(x0, eps, out if kind.name == "v" else alpha * eps - sigma * x0)


def of_x0(x0: Tensor, z: Tensor, points: list[Point]) -> Views:
    """The views of a given x0 at z."""
    alpha, sigma = scales(points, z)
    eps = (z - alpha * x0) / sigma
    return Views(x0, eps, alpha * eps - sigma * x0)


@torch.no_grad()
def two_steps(teacher: Network, process: Process, z: Tensor, t: Float64Array, steps: int, **cond: Any) -> Tensor:
    """The x0 that takes a student of `steps` steps in one DDIM step where the teacher gets in two of half the length
    (Salimans & Ho 2022, Algorithm 2); where the step ends at the data, the teacher's second x0 itself."""
    length = process.schedule.t_max / steps
    first, middle = process.schedule.points(t), process.schedule.points(t - length / 2)
    ends = np.where(t < 1.5 * length, 0.0, t - length)  # exactly 0 at the last step
    last = process.schedule.points(ends)
    found = views(teacher, process, z, first, **cond)
    alpha, sigma = scales(middle, z)
    found = views(teacher, process, alpha * found.x0 + sigma * found.eps, middle, **cond)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = scales(last, z), scales(first, z)
    z_s = alpha_s * found.x0 + sigma_s * found.eps
    ratio = sigma_s / sigma_t
    target = (z_s - ratio * z) / (alpha_s - ratio * alpha_t)
    return torch.where(rows(torch.from_numpy(ends), z) == 0, found.x0, target)


def student_times(
    process: Process, count: int, generator: torch.Generator, steps: int, u: Tensor | None, index: Tensor | None
) -> Float64Array:
    """(count,) times: t_max (index + 1) / steps, or t_max u where steps is 0; drawn where neither is given."""
    expect(steps >= 0, f"steps must be 0 (any time) or more, got {steps}")
    if steps:
        index = torch.randint(steps, (count,), generator=generator) if index is None else index
        u = (index.double() + 1) / steps
    elif u is None:
        low = process.schedule.t_min / process.schedule.t_max
        u = low + (1 - low) * uniform(count, generator)
    return np.asarray(process.schedule.t_max * u.double().cpu())


def weighted(found: Views, target: Views, points: list[Point], weight: str) -> Tensor:
    """(B,): "constant" the mean error of x0, "snr" of eps, "snr+1" x0's times 1 + SNR, "snr_trunc" the larger of x0's
    and eps', "v_mse" of v. Raises ValueError for another weight."""
    one_of("weight", weight, WEIGHTS)
    errors = [mean_d((a - b).square()) for a, b in zip(found, target)]
    if weight == "snr+1":
        snr = torch.tensor([(p.alpha / p.sigma) ** 2 for p in points], dtype=torch.float64)
        return errors[0] * (1 + snr).to(errors[0])
    if weight == "snr_trunc":
        return torch.maximum(errors[0], errors[1])
    return errors[{"constant": 0, "snr": 1, "v_mse": 2}[weight]]


def progressive_terms(
    network: Network,
    process: Process,
    batch: Tensor,
    generator: torch.Generator,
    *,
    teacher: Network | None = None,
    steps: int = 0,
    weight: str = "snr_trunc",
    u: Tensor | None = None,
    index: Tensor | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> Distilled:
    """`progressive_loss` with the states and targets."""
    expect(teacher is None or steps > 0, "distillation needs the student's number of steps, got steps=0")
    noise = normal(batch, generator, noise)
    t = student_times(process, len(batch), generator, steps, u, index)
    points = process.schedule.points(t)
    alpha, sigma = scales(points, batch)
    z = alpha * batch + sigma * noise
    if teacher is None:
        target = Views(batch, noise, alpha * noise - sigma * batch)
    else:
        target = of_x0(two_steps(teacher, process, z, t, steps, **cond), z, points)
    found = views(network, process, z, points, **cond)
    return Distilled(weighted(found, target, points, weight), z, target, found)


def progressive_loss(
    network: Network, process: Process, batch: Tensor, generator: torch.Generator, **options: Any
) -> Tensor:
    """The error of a student against two DDIM steps of its teacher, of each sample, (B,) (Salimans & Ho 2022).

    process: of student and teacher; any schedule on which x0 and eps are defined, any prediction without a learned
    variance, or `BOTH`. batch: x0, (B, ...). teacher: none to train on the data themselves. steps: of the student; 0 is
    any time, for training on data. weight: see `weighted`. u: times in units of t_max, or index: steps 0 .. steps - 1,
    (B,), drawn unless given. noise: drawn unless given. The rest are conditions of both networks.
    Raises ValueError for an unknown weight, and for a teacher without steps.
    """
    return progressive_terms(network, process, batch, generator, **options).loss


class ReverseStep(NamedTuple):
    """p(z_s | z_t): mean (B, ...), variance (B,); what the network says; kl_bits: (B,), from q, where x0 is given."""

    mean: Tensor
    variance: Tensor
    found: Views
    kl_bits: Tensor | None


def reverse_step(
    network: Network,
    process: Process,
    z: Tensor,
    t: Float64Array,
    s: Float64Array,
    *,
    variance: str = "fixed_small",
    clip: bool = False,
    x0: Tensor | None = None,
    **cond: Any,
) -> ReverseStep:
    """p(z_s | z_t) in continuous time, at times t > s, (B,) (Kingma et al. 2021, Variational Diffusion, Appendix A).

    variance: "fixed_small" (of the posterior), "fixed_large", or "fixed_medium:f" for large^f small^(1-f). clip: x0 to
    [-1, 1]. x0: the data, to have the divergence of q(z_s | z_t, x0). Raises ValueError for another variance.
    """
    at_t, at_s = process.schedule.points(t), process.schedule.points(s)
    found = views(network, process, z, at_t, **cond)
    if clip:
        found = of_x0(found.x0.clamp(-1, 1), z, at_t)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = scales(at_t, z), scales(at_s, z)
    kept = rows([np.exp(2 * (p.lam - q.lam)) for p, q in zip(at_t, at_s)], z)  # SNR_t / SNR_s
    lost = rows([-np.expm1(2 * (p.lam - q.lam)) for p, q in zip(at_t, at_s)], z)

    def mean(x: Tensor) -> Tensor:
        return kept * alpha_s / alpha_t * z + alpha_s * lost * x

    small, large = lost * sigma_s**2, lost * sigma_t**2
    name, _, share = variance.partition(":")
    if name not in ("fixed_small", "fixed_large", "fixed_medium"):
        raise unknown("variance", variance, ("fixed_small", "fixed_large", "fixed_medium:f"))
    f = {"fixed_small": 0.0, "fixed_large": 1.0}[name] if not share else float(share)
    spread = large**f * small ** (1 - f)
    bits = None
    if x0 is not None:
        bits = mean_d(gaussian_kl(mean(x0), small.log().expand_as(z), mean(found.x0), spread.log())) / log(2)
    return ReverseStep(mean(found.x0), spread.flatten(), found, bits)
