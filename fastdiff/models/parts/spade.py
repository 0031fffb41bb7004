"""Residual blocks whose norms are scaled and shifted, pixel by pixel, by a map of labels (Park et al. 2019, SPADE)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.models.parts.blocks import Conditioned, ResBlock
from fastdiff.ops.group_norm_silu import group_norm_silu


class SpadeNorm(nn.Module):
    """(1 + gamma(y)) GN(x) + beta(y): (B, channels, H, W) and y (B, label_channels, h, w) -> (B, channels, H, W).

    gamma and beta are convolutions of y at x's resolution, nearest neighbour (Park et al. 2019, Eq. 1, with group norm
    for batch norm). hidden: channels between.
    """

    def __init__(self, channels: int, label_channels: int, *, groups: int = 32, hidden: int = 128) -> None:
        super().__init__()
        self.groups = groups
        self.hidden = nn.Conv2d(label_channels, hidden, 3, padding=1)
        self.modulation = nn.Conv2d(hidden, 2 * channels, 3, padding=1)  # gamma, then beta

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if y.shape[2:] != x.shape[2:]:
            y = F.interpolate(y, x.shape[2:], mode="nearest")
        gamma, beta = self.modulation(F.relu(self.hidden(y))).chunk(2, dim=1)
        return torch.addcmul(beta, group_norm_silu(x, self.groups, activation=None), 1 + gamma)


class SpadeResBlock(Conditioned, ResBlock):
    """A residual block with SPADE's norms (Wang et al. 2022, SDM, Section 3.2): block(x, embedding, y, size).

    label_channels: of y, (B, label_channels, H, W) at any resolution. The rest: as of ResBlock, whose arithmetic it is.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        *,
        label_channels: int,
        adaptive: bool,
        dropout: float = 0.0,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            embedding_channels,
            norm=lambda channels: SpadeNorm(channels, label_channels),
            adaptive=adaptive,
            dropout=dropout,
            resample=resample,
        )

    def forward(  # type: ignore[override]
        self, x: Tensor, embedding: Tensor, y: Tensor, size: torch.Size | None = None
    ) -> Tensor:
        h = F.silu(self.norm1(x, y))
        if self.resample is not None:
            h, x = self.resample(h, size), self.resample(x, size)
        h = self.conv1(h)
        if self.scale_shift is not None:
            scale, shift = (part[:, :, None, None] for part in self.scale_shift(embedding).chunk(2, dim=1))
            h = torch.addcmul(shift, self.norm2(h, y), 1 + scale)
        else:
            assert self.shift is not None
            h = self.norm2(h + self.shift(embedding)[:, :, None, None], y)
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))
