"""Residual blocks with RMS norms, as in the U-Nets of lucidrains' repositories, over 1 or 2 dimensions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.models.parts.blocks import conv_nd


class RMSNorm(nn.Module):
    """Channels divided by their root mean square (Zhang & Sennrich 2019, Eq. 4), times a gain: (B, C, ...) -> the same.

    axis: of the channels, for tokens the last. scale, shift: what is asked for of (1 + scale) y + shift, (B, C).
    activation: "silu" for SiLU after that.
    """

    def __init__(self, channels: int, *, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(
        self, x: Tensor, *, scale: Tensor | None = None, shift: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        def beside(row: Tensor) -> Tensor:
            """(..., C) in the shape of what goes with x's channels."""
            return row if self.axis == -1 else row.reshape(*row.shape, *[1] * (x.ndim - 2))

        gain, y = math.sqrt(x.shape[self.axis]) * self.weight, F.normalize(x, dim=self.axis)
        if scale is not None and shift is not None:
            y = torch.addcmul(beside(shift), y, beside(gain * (scale + 1)))
        else:
            y = y * beside(gain)
        return F.silu(y) if activation == "silu" else y


class RMSResBlock(nn.Module):
    """Convolution, norm, SiLU, twice, with the embedding after the first norm: (B, in, ...) -> (B, out, ...).

    embedding_channels: of the embedding, after its activation; None for a block without.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int | None,
        *,
        dropout: float = 0.0,
        dims: int = 2,
    ) -> None:
        super().__init__()
        self.scale_shift = None if embedding_channels is None else nn.Linear(embedding_channels, 2 * out_channels)
        self.conv1 = conv_nd(dims, in_channels, out_channels, 3, padding=1)
        self.norm1 = RMSNorm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv_nd(dims, out_channels, out_channels, 3, padding=1)
        self.norm2 = RMSNorm(out_channels)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else conv_nd(dims, in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        scale = shift = None
        if self.scale_shift is not None:
            scale, shift = self.scale_shift(embedding).chunk(2, dim=1)
        h = self.dropout(self.norm1(self.conv1(x), scale=scale, shift=shift, activation="silu"))
        return self.norm2(self.conv2(h), activation="silu") + self.skip(x)
