"""Positions of tokens to each other: rotations of queries and keys, and buckets of distances."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions: channels (2 i, 2 i + 1) of x (..., S, D) turned by angles (S, n), the first 2 n of D.

    Returns x's shape and dtype. Su et al. 2021, RoFormer, Eq. 34.
    """
    count = 2 * angles.shape[1]
    cos, sin = angles.cos(), angles.sin()
    along, across = (torch.stack(pair, dim=-1).flatten(-2).to(x.dtype) for pair in ((cos, cos), (-sin, sin)))
    turned = x[..., :count]
    swapped = turned.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    turned = torch.addcmul(turned * along, swapped, across)
    return turned if count == x.shape[-1] else torch.cat([turned, x[..., count:]], dim=-1)


def buckets(distance: Tensor, count: int, max_distance: int) -> Tensor:
    """The bucket, of `count`, of distances that are not negative: the first half is for one distance each, the rest for
    distances up to max_distance, on a logarithmic scale. Raffel et al. 2020, T5, Section 2.1.
    """
    exact = count // 2
    share = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    wide = (exact + (share * (count - exact)).long()).clamp(max=count - 1)
    return torch.where(distance < exact, distance, wide)
