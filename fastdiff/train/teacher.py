"""A frozen network that others learn from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.train.terms import Network, full


def guided(network: Network, scale: float, uncond: Mapping[str, Tensor]) -> Network:
    """Classifier-free guidance as a network of its own: uncond + scale (cond - uncond), which is guidance of x0 and eps
    alike, as these are linear in the output (Ho & Salimans 2022, Eq. 6).

    uncond: conditions that stand for none, (1, ...) or (B, ...), of the names of those of each call. Both halves are
    one batch of 2B. A scale of 1 is the network itself.
    """
    if scale == 1:
        return network

    def call(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        both = {name: torch.cat([value, uncond[name].expand_as(value)]) for name, value in cond.items()}
        with_cond, without = network(torch.cat([x, x]), torch.cat([t, t]), **both).chunk(2)
        return torch.lerp(full(without), full(with_cond), scale)

    return call


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of the weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        )  # NumPy has no bfloat16
    return digest.hexdigest()
