"""The upsampler of the bundled models: SR3 (Saharia et al. 2021) with noise-conditioning augmentation (Ho et al. 2021),
on pixels that are rearranged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.models.info import ModelInfo
from fastdiff.models.parts.backbone import Backbone
from fastdiff.models.parts.blocks import (
    Downsample,
    GroupNorm,
    ResBlock,
    Upsample,
    embedding_dtype,
    mlp,
    timestep_embedding,
)


@dataclass(frozen=True)
class UpsamplerConfig:
    """The shape of an `Upsampler`.

    channels, blocks, image_channels, embedding_channels, groups: as of `UNetConfig`. factor: how many times larger the
    pictures become. patch: pixels a side that are one pixel of patch^2 times the channels to the network.
    """

    channels: tuple[int, ...]
    blocks: int
    factor: int = 4
    patch: int = 2
    image_channels: int = 3
    embedding_channels: int = 256
    groups: int = 16


class Upsampler(Backbone):
    """`model(x, t, image=small, level=level)` -> what `prediction` says it is, in x's shape.

    x: (B, C, H, W), the noisy large picture, H and W divisible by patch * 2 ** (len(channels) - 1) and by factor. t:
    (B,) training times. image: (B, C, H / factor, W / factor) or one for all, the small picture; the network enlarges
    it. level: (B,), the training time of the noise in the small picture; none if not given. Convolutions alone, so that
    pictures of any size are taken. Raises ValueError where these do not fit.
    """

    info: ModelInfo  # of a model from fastdiff.load

    def __init__(self, config: UpsamplerConfig) -> None:
        embedding, first = config.embedding_channels, config.channels[0]
        colours = config.image_channels * config.patch**2

        def norm(channels: int) -> GroupNorm:
            return GroupNorm(config.groups, channels)

        super().__init__(
            in_channels=2 * colours,
            out_channels=colours,
            channels=config.channels,
            blocks=[config.blocks] * len(config.channels),
            residual=lambda i, o: ResBlock(i, o, embedding, norm=norm),
            attention=lambda place, level, index, channels: None,
            down=lambda level, channels: Downsample(channels),
            up=lambda level, channels: Upsample(channels),
            norm=norm,
        )
        self.config = config
        self.time_embedding, self.level_embedding = mlp(first, embedding), mlp(first, embedding)

    def forward(
        self, x: Tensor, t: Tensor, image: Tensor | None = None, level: Tensor | None = None, **options: Any
    ) -> Tensor:
        image = self._checked(x, t, image)
        level = torch.zeros_like(t) if level is None else level
        expect(level.shape == t.shape, f"level must be {tuple(t.shape)}, one a sample, got {tuple(level.shape)}")
        width, dtype = self.config.channels[0], embedding_dtype(x)
        embedding = self.time_embedding(timestep_embedding(t.to(dtype), width).to(x.dtype))
        embedding = embedding + self.level_embedding(timestep_embedding(level.to(dtype), width).to(x.dtype))
        large = F.interpolate(image, x.shape[2:], mode="bicubic", align_corners=False)
        h = F.pixel_unshuffle(torch.cat([large, x], dim=1), self.config.patch)
        return F.pixel_shuffle(self.run(h, F.silu(embedding), **options), self.config.patch)

    def _checked(self, x: Tensor, t: Tensor, image: Tensor | None) -> Tensor:
        """The small picture of each sample, in x's dtype."""
        config = self.config
        multiple = config.patch * 2 ** (len(config.channels) - 1)
        sides = x.shape[2:]
        expect(
            x.ndim == 4
            and x.shape[1] == config.image_channels
            and all(side % multiple == side % config.factor == 0 for side in sides),
            f"x must be (B, {config.image_channels}, H, W) with H and W divisible by {multiple} and {config.factor}, "
            f"got {tuple(x.shape)}",
        )
        expect(t.shape == x.shape[:1], f"t must be ({len(x)},), one time a sample, got {tuple(t.shape)}")
        small = (config.image_channels, *(side // config.factor for side in sides))
        if image is None or image.ndim != 4 or image.shape[1:] != small or len(image) not in (1, len(x)):
            raise ValueError(
                f"image must be {(len(x), *small)}, the small picture of each sample, got "
                f"{None if image is None else tuple(image.shape)}"
            )
        return image.to(x.dtype).expand(len(x), *small)
