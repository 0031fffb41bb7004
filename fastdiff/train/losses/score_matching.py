"""Score matching without noise levels: sliced, and scores that are gradients of an energy.

Denoising score matching is `denoising_loss` with the prediction "score" and the weighting `annealed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff.errors import one_of, unknown
from fastdiff.train.process import Process
from fastdiff.train.terms import Network, full, mean_d, normal, sum_d

DIRECTIONS = ("gaussian", "rademacher", "sphere", "unit")


def score_of_energy(energy: Network) -> Network:
    """The score -dE/dx of an energy E: (B, ...) -> (B,) or (B, 1), to be differentiated again."""

    def score(x: Tensor, *arguments: Tensor, **options: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            return -torch.autograd.grad(energy(x, *arguments, **options).sum(), x, create_graph=True)[0]

    return score


def directions(vectors: Tensor, kind: str) -> Tensor:
    """Normal vectors (B, ...) as "gaussian" (as they are), "rademacher" (their signs), "sphere" (norm sqrt(D)) or
    "unit" (norm 1). Raises ValueError for another kind."""
    one_of("kind of direction", kind, DIRECTIONS)
    if kind == "gaussian":
        return vectors
    if kind == "rademacher":
        return vectors.sign()
    norm = sum_d(vectors.square()).sqrt().view(-1, *[1] * (vectors.ndim - 1))
    return vectors / norm * (vectors[0].numel() ** 0.5 if kind == "sphere" else 1.0)


def sliced_loss(
    network: Network,
    process: Process | None,
    batch: Tensor,
    generator: torch.Generator,
    *,
    particles: int = 1,
    direction: str = "gaussian",
    variance_reduced: bool = False,
    times: ArrayLike | Tensor | None = None,
    noise: Tensor | None = None,
    vectors: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """Sliced score matching of each sample: v.J v + (v.s)^2 / 2, or + |s|^2 / 2 where variance_reduced.

    network: the score s. process: None for s(x) at the data themselves; else s(x_t, t) at noisy data with the
    prediction "score", and the loss times sigma^2. batch: (B, ...). particles: directions a sample. direction: see
    `directions`. vectors: normal ones, (particles B, ...), particle by particle, drawn unless given. Returns (B,).
    Source: Song et al. 2019, Sliced Score Matching, Eq. 7 and 8; Song & Ermon 2019, NCSN, Section 4.2. Raises
    ValueError for another prediction.
    """
    arguments: Sequence[Tensor] = ()
    weight = batch.new_ones(len(batch))
    x = batch
    if process is not None:
        if process.prediction.name != "score":
            raise unknown("prediction of sliced_loss", process.prediction.name, ["score"])
        eps = normal(batch, generator, noise)
        points = process.points(len(batch), generator) if times is None else process.at(times)
        x, t = process.inputs(batch, eps, points)
        arguments = (t.repeat(particles),)
        weight = torch.tensor([p.sigma**2 for p in points], dtype=torch.float64).to(batch)
    x = x.detach().repeat(particles, *[1] * (x.ndim - 1)).requires_grad_()
    drawn = normal(x.detach(), generator) if vectors is None else vectors
    v = directions(drawn, direction)
    cond = {key: value.repeat(particles, *[1] * (value.ndim - 1)) for key, value in cond.items()}
    with torch.enable_grad():
        s = full(network(x, *arguments, **cond))
        along = sum_d(s * v)
        slope = sum_d(torch.autograd.grad(along.sum(), x, create_graph=True)[0] * v)
    square = sum_d(s.square()) if variance_reduced else along.square()
    return weight * mean_d((slope + 0.5 * square).view(particles, -1).T)
