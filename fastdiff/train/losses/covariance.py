"""Networks that learn the square of the noise or of their own error (Bao et al. 2022b, SN-DPM and NPR-DPM)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.errors import expect, one_of, unknown
from fastdiff.train.process import Process
from fastdiff.train.terms import Network, full, mean_d, normal, sum_d

CRITERIA = ("dsm", "dsdm", "dsdm-err")


class CovarianceTerms(NamedTuple):
    """Of each sample, (B,); ratio: of second to first, without gradient."""

    loss: Tensor
    first: Tensor
    second: Tensor | None
    ratio: Tensor


def covariance_terms(
    network: Network,
    process: Process,
    batch: Tensor,
    generator: torch.Generator,
    *,
    criterion: str = "dsdm-err",
    output: str = "eps_epsc",
    ratio: float | str = 1.0,
    mean: bool = False,
    times: Any = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> CovarianceTerms:
    """`covariance_loss` with its parts."""
    one_of("criterion", criterion, CRITERIA)
    if output not in ("eps", "eps_eps2", "eps_epsc"):
        raise unknown("output", output, ("eps", "eps_eps2", "eps_epsc"))
    expect((output == "eps") <= (criterion == "dsm"), f"criterion {criterion!r} needs an output with two halves")
    if process.prediction.name not in ("eps", "eps+variance"):
        raise unknown("prediction of covariance_loss", process.prediction.name, ("eps", "eps+variance"))
    z = normal(batch, generator, noise)
    points = process.points(len(batch), generator) if times is None else process.at(times)
    x, t = process.inputs(batch, z, points)
    out = full(network(x, t, **cond))
    eps, half = (out, out) if output == "eps" else out.chunk(2, dim=1)
    reduce = mean_d if mean else sum_d
    first = reduce((z - eps).square())
    one = torch.ones((), dtype=first.dtype, device=first.device)
    if criterion == "dsm":
        return CovarianceTerms(first, first, None, one)
    if criterion == "dsdm":
        second = reduce((z.square() - (half if output == "eps_eps2" else half + eps.square())).square())
    else:
        second = reduce(((z - eps).square().detach() - half).square())
    factor = (first.mean() / second.mean()).detach() if isinstance(ratio, str) else one * ratio
    return CovarianceTerms(first + factor * second, first, second, factor)


def covariance_loss(
    network: Network, process: Process, batch: Tensor, generator: torch.Generator, **options: Any
) -> Tensor:
    """The error of eps and `ratio` times that of the second half of the output, of each sample, (B,).

    process: predicts "eps". criterion: "dsm", eps alone; "dsdm", the second half against eps^2 ("eps_eps2", SN-DPM, Bao
    et al. 2022b, Eq. 10) or, with the square of the predicted eps added, "eps_epsc"; "dsdm-err", against the square of
    the error, which gets no gradient (NPR-DPM, Eq. 15). ratio: a number, or "adaptive": the mean of the first over that
    of the second. mean: over a sample, in place of sums. times, noise: drawn unless given. Raises ValueError for other
    names and predictions.
    """
    return covariance_terms(network, process, batch, generator, **options).loss
