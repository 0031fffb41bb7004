"""Imagic: Kawar et al. 2022, Imagic: Text-Based Real Image Editing with Diffusion Models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff import arguments
from fastdiff.errors import expect
from fastdiff.train.losses.denoising import denoising_loss
from fastdiff.train.process import Process


def interpolate(target: Tensor, optimized: Tensor, eta: float) -> Tensor:
    """eta e_tgt + (1 - eta) e_opt (Section 3.2, Eq. 3), two embeddings of one shape; eta may be above 1."""
    eta = arguments.number("eta", eta)
    expect(
        target.shape == optimized.shape,
        f"the embeddings must be alike, got {tuple(target.shape)} and {tuple(optimized.shape)}",
    )
    return eta * target + (1 - eta) * optimized


def optimize_embedding(
    network: Callable[..., Tensor],
    process: Process,
    x0: Tensor,
    cond: Mapping[str, Tensor],
    *,
    name: str = "context",
    steps: int = 100,
    lr: float = 1e-3,
    batch: int = 16,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The conditions with the argument `name` moved from the target text's embedding to what describes the picture
    (Section 3.2, first stage): Adam on the denoising loss of x0, (1, ...), the network frozen.

    batch: times and noises in a step. Raises ValueError for more than one picture or no such argument.
    """
    x0 = _one_picture(x0, cond, name)
    generator = torch.Generator().manual_seed(arguments.whole("seed", seed, 0))
    steps, batch, lr = (
        arguments.whole("steps", steps, 1),
        arguments.whole("batch", batch, 1),
        arguments.number("lr", lr),
    )
    embedding = cond[name].detach().clone().requires_grad_()
    adam = torch.optim.Adam([embedding], lr=lr)
    for _ in range(steps):
        rows = _rows({**cond, name: embedding}, batch)
        loss = denoising_loss(network, process, x0.expand(batch, *x0.shape[1:]), generator, **rows).mean()
        adam.zero_grad()
        loss.backward(inputs=[embedding])
        adam.step()
    return {**cond, name: embedding.detach()}


def optimize_network(
    network: nn.Module,
    process: Process,
    x0: Tensor,
    cond: Mapping[str, Tensor],
    *,
    steps: int = 100,
    lr: float = 1e-5,
    batch: int = 16,
    seed: int = 0,
) -> None:
    """Fine-tune the network, in place, on the picture x0, (1, ...), with the optimised conditions (Section 3.2, second
    stage): Adam on the denoising loss. Give it a copy where the original is still needed. Raises ValueError for more
    than one picture, and for a network whose parameters are all frozen."""
    x0 = _one_picture(x0, cond, None)
    generator = torch.Generator().manual_seed(arguments.whole("seed", seed, 0))
    steps, batch, lr = (
        arguments.whole("steps", steps, 1),
        arguments.whole("batch", batch, 1),
        arguments.number("lr", lr),
    )
    weights = [p for p in network.parameters() if p.requires_grad]
    expect(bool(weights), "the network's parameters are frozen: network.requires_grad_() makes them trainable")
    adam = torch.optim.Adam(weights, lr=lr)
    for _ in range(steps):
        loss = denoising_loss(network, process, x0.expand(batch, *x0.shape[1:]), generator, **_rows(cond, batch)).mean()
        adam.zero_grad()
        loss.backward(inputs=weights)
        adam.step()
    for weight in weights:
        weight.grad = None


def _one_picture(x0: Any, cond: Mapping[str, Tensor], name: str | None) -> Tensor:
    x0 = arguments.state("x0", x0)
    expect(len(x0) == 1, f"x0 must be one picture, (1, ...), got {tuple(x0.shape)}")
    arguments.conditions("cond", cond, 1)
    if name is not None:
        given = cond.get(name)
        good = isinstance(given, Tensor) and given.is_floating_point()
        expect(good, f"cond must hold the embedding {name!r}, a floating-point tensor, got {sorted(cond)}")
    return x0


def _rows(cond: Mapping[str, Tensor], batch: int) -> dict[str, Any]:
    return {key: value.expand(batch, *value.shape[1:]) for key, value in cond.items()}
