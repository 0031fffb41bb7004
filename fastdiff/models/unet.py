"""The U-Net of the bundled models (after Ho et al. 2020, DDPM, and Dhariwal & Nichol 2021, ADM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.info import ModelInfo
from fastdiff.models.parts.backbone import Backbone, Stage
from fastdiff.models.parts.blocks import (
    AttentionBlock,
    Downsample,
    GroupNorm,
    PositionEmbedding,
    ResBlock,
    Upsample,
    embedding_dtype,
    mlp,
    timestep_embedding,
)


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


class UNet(Backbone):
    """Noise-prediction network: `model(x, t, y)` -> what `prediction` says it is, in x's shape.

    x: (B, image_channels, H, W), H and W divisible by 2 ** (len(channels) - 1). t: (B,) training times, fractional
    ones included. y: (B,) int64 classes in [0, num_classes], for a class-conditional model.
    Raises ValueError where these do not fit.
    """

    info: ModelInfo  # of a model from fastdiff.load

    def __init__(self, config: UNetConfig) -> None:
        embedding, first = config.embedding_channels, config.channels[0]

        def norm(channels: int) -> GroupNorm:
            return GroupNorm(config.groups, channels)

        def attention(place: str, level: int, index: int, channels: int) -> nn.Module | None:
            if level not in config.attention_levels:
                return None
            return AttentionBlock(channels, channels // config.head_channels, norm=norm)

        super().__init__(
            in_channels=config.image_channels,
            out_channels=config.image_channels,
            channels=config.channels,
            blocks=[config.blocks] * len(config.channels),
            residual=lambda i, o: ResBlock(i, o, embedding, norm=norm, dropout=config.dropout),
            attention=attention,
            down=lambda level, channels: Downsample(channels),
            up=lambda level, channels: Upsample(channels),
            norm=norm,
        )
        self.config = config
        self.time_embedding = mlp(first, embedding)
        self.class_embedding = nn.Embedding(config.num_classes + 1, embedding) if config.num_classes else None
        self.positions = PositionEmbedding(first, config.positions) if config.positions else None
        if config.positions:
            size = config.positions
            for stage, channels in zip(self.down, self.skip_channels[1:]):
                assert isinstance(stage, Stage)
                if isinstance(stage[0], Downsample):
                    size //= 2
                    stage.append(PositionEmbedding(channels, size))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, **options: Any) -> Tensor:
        return self.run(x, F.silu(self._embed(x, t, y)), **options)

    def stem(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        return h if self.positions is None else self.positions(h)

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
        times = timestep_embedding(t.to(embedding_dtype(x)), config.channels[0])
        embedding = self.time_embedding(times.to(x.dtype))
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
