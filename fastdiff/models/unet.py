"""The U-Net of pixel-space diffusion models (Ho et al. 2020, DDPM; Dhariwal & Nichol 2021, ADM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.blocks import (
    AttentionBlock,
    Downsample,
    PositionEmbedding,
    ResBlock,
    Upsample,
    timestep_embedding,
    zero_init,
)

if TYPE_CHECKING:
    from fastdiff.models.bundled import ModelInfo


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a `UNet`.

    channels: features at each resolution, each level at half the one before. blocks: residual blocks a level on the
    way down, one more on the way up. attention_levels: indices into `channels`. num_classes: 0 for an unconditional
    model; otherwise class `num_classes` is the "no class" of classifier-free guidance. positions: pixels a side of the
    only pictures that the network takes, with a learned embedding of each position at each level; 0 for one that takes
    any size and knows of positions only what the borders tell.
    """

    channels: tuple[int, ...]
    blocks: int
    attention_levels: tuple[int, ...]
    num_classes: int = 0
    positions: int = 0
    image_channels: int = 3
    embedding_channels: int = 256
    head_channels: int = 32
    groups: int = 16
    dropout: float = 0.0


class UNet(nn.Module):
    """Noise-prediction network: `model(x, t, y)` -> what `prediction` says it is, in x's shape.

    x: (B, image_channels, H, W), H and W divisible by 2 ** (len(channels) - 1). t: (B,) training times, fractional
    ones included. y: (B,) int64 classes in [0, num_classes], for a class-conditional model.
    Raises ValueError where these do not fit.
    """

    info: ModelInfo  # of a model from fastdiff.load

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        embedding, groups = config.embedding_channels, config.groups
        first = config.channels[0]
        self.time_embedding = nn.Sequential(nn.Linear(first, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.class_embedding = nn.Embedding(config.num_classes + 1, embedding) if config.num_classes else None

        def stage(in_channels: int, out_channels: int, level: int) -> nn.ModuleList:
            """One residual block, then attention where the level has it."""
            block = ResBlock(in_channels, out_channels, embedding, groups=groups, dropout=config.dropout)
            if level not in config.attention_levels:
                return nn.ModuleList([block])
            return nn.ModuleList(
                [block, AttentionBlock(out_channels, head_channels=config.head_channels, groups=groups)]
            )

        last_level = len(config.channels) - 1
        self.conv_in = nn.Conv2d(config.image_channels, first, 3, padding=1)
        self.positions = PositionEmbedding(first, config.positions) if config.positions else None
        self.down, skips, width = nn.ModuleList(), [first], first
        for level, channels in enumerate(config.channels):
            for _ in range(config.blocks):
                self.down.append(stage(width, channels, level))
                width = channels
                skips.append(width)
            if level < last_level:
                layers = nn.ModuleList([Downsample(width)])
                if config.positions:
                    layers.append(PositionEmbedding(width, config.positions >> (level + 1)))
                self.down.append(layers)
                skips.append(width)

        middle = stage(width, width, last_level)
        middle.append(ResBlock(width, width, embedding, groups=groups, dropout=config.dropout))
        self.middle = middle

        self.up = nn.ModuleList()
        for level in reversed(range(len(config.channels))):
            for block in range(config.blocks + 1):
                layers = stage(width + skips.pop(), config.channels[level], level)
                width = config.channels[level]
                if level > 0 and block == config.blocks:
                    layers.append(Upsample(width))
                self.up.append(layers)

        self.norm_out = nn.GroupNorm(groups, width)
        self.conv_out = zero_init(nn.Conv2d(width, config.image_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        embedding = self._embed(x, t, y)
        h = self.conv_in(x)
        if self.positions is not None:
            h = self.positions(h)
        skips = [h]
        for layers in self.down:
            h = _apply(layers, h, embedding)
            skips.append(h)
        h = _apply(self.middle, h, embedding)
        for layers in self.up:
            h = _apply(layers, torch.cat([h, skips.pop()], dim=1), embedding)
        return self.conv_out(F.silu(self.norm_out(h)))

    def _embed(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        config = self.config
        multiple = 2 ** (len(config.channels) - 1)
        expect(
            x.ndim == 4 and x.shape[1] == config.image_channels and x.shape[2] % multiple == x.shape[3] % multiple == 0,
            f"x must be (B, {config.image_channels}, H, W) with H and W divisible by {multiple}, got {tuple(x.shape)}",
        )
        expect(
            not config.positions or x.shape[2:] == (config.positions, config.positions),
            f"x must be {config.positions} pixels a side, the size of the learned positions, got {tuple(x.shape)}",
        )
        expect(t.shape == x.shape[:1], f"t must be ({x.shape[0]},), one time a sample, got {tuple(t.shape)}")
        t = t.to(torch.promote_types(x.dtype, torch.float32))  # half precisions have no room for 999
        embedding = self.time_embedding(timestep_embedding(t, config.channels[0]).to(x.dtype))
        if self.class_embedding is None:
            expect(y is None, "y was given, but the model has no classes")
            return embedding
        expect(
            y is not None and y.shape == t.shape,
            f"y must be ({x.shape[0]},), one class in 0..{config.num_classes} a sample, got "
            f"{None if y is None else tuple(y.shape)}",
        )
        assert y is not None  # else refused above
        return embedding + self.class_embedding(y.to(x.device))


def _apply(layers: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
    for layer in layers.children():
        h = layer(h, embedding) if isinstance(layer, ResBlock) else layer(h)
    return h
