"""SR3 (Saharia et al. 2021, Image Super-Resolution via Iterative Refinement): a U-Net that sees the small picture,
enlarged, and the noise level, in the form of Janspiry's implementation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect, unknown
from fastdiff.models.parts.backbone import Backbone
from fastdiff.models.parts.blocks import (
    AttentionBlock,
    Downsample,
    GroupNorm,
    ResBlock,
    Upsample,
    embedding_dtype,
    mlp,
    timestep_embedding,
)

NETWORKS = ("sr3", "ddpm")


@dataclass(frozen=True)
class SR3Config:
    """The arguments of `UNet` in sr3_modules and in ddpm_modules; network: "sr3" or "ddpm", which of the two.

    in_channel: of the condition and the noisy picture. out_channel: in_channel if None. attn_res: pixels a side where
    blocks are followed by attention, for pictures of image_size. with_time_emb: False for a "ddpm" network without
    times. Raises ValueError for an "sr3" network without noise levels, which the original cannot make.
    """

    in_channel: int = 6
    out_channel: int | None = 3
    inner_channel: int = 32
    norm_groups: int = 32
    channel_mults: tuple[int, ...] = (1, 2, 4, 8, 8)
    attn_res: tuple[int, ...] = (8,)
    res_blocks: int = 3
    dropout: float = 0.0
    with_noise_level_emb: bool = True
    with_time_emb: bool = True
    image_size: int = 128
    network: str = "sr3"

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise unknown("network", self.network, NETWORKS)
        expect(self.network == "ddpm" or self.with_noise_level_emb, "a network 'sr3' needs with_noise_level_emb")

    @property
    def is_conditioned(self) -> bool:
        """Whether the network takes times or noise levels."""
        return self.network == "sr3" or self.with_time_emb

    def attends(self, place: str, level: int) -> bool:
        """Whether blocks of a level on the way "down" or "up" are followed by attention."""
        last = len(self.channel_mults) - 1
        size = self.image_size >> level if place == "down" else (self.image_size >> last) << (last - level)
        return size in self.attn_res


class SR3UNet(Backbone):
    """Noise-prediction network: `model(x, t, image=enlarged)` -> (B, out_channel, H, W).

    x: (B, C, H, W), the noisy picture, of which an image that is not given is the first part. t: (B,) or (B, 1), the
    noise level alpha in (0, 1) (the square root of the cumulative product of 1 - beta) for network "sr3", for "ddpm"
    the training time. image: (B, in_channel - C, H, W), the condition: for super-resolution the small picture at x's
    size, by bicubic interpolation in the paper. Sampled with prediction=fastdiff.prediction.of_noise_level() ("sr3") or
    "eps" ("ddpm"). Raises ValueError where these do not fit.
    """

    def __init__(self, config: SR3Config) -> None:
        width = config.inner_channel
        embedding = width if config.is_conditioned else None

        def norm(channels: int) -> GroupNorm:
            return GroupNorm(config.norm_groups, channels)

        def attention(place: str, level: int, index: int, channels: int) -> nn.Module | None:
            if place != "middle" and not config.attends(place, level):
                return None
            return AttentionBlock(channels, 1, norm=norm, qkv_bias=False)

        super().__init__(
            in_channels=config.in_channel,
            out_channels=config.out_channel or config.in_channel,
            channels=[width * mult for mult in config.channel_mults],
            stem_channels=width,
            blocks=[config.res_blocks] * len(config.channel_mults),
            residual=lambda i, o: ResBlock(i, o, embedding, norm=norm, adaptive=False, dropout=config.dropout),
            attention=attention,
            down=lambda level, channels: Downsample(channels),
            up=lambda level, channels: Upsample(channels),
            norm=norm,
        )
        self.config = config
        self.time_embedding = mlp(width, 4 * width, width) if config.is_conditioned else None

    def forward(self, x: Tensor, t: Tensor | None = None, image: Tensor | None = None, **options: Any) -> Tensor:
        x = beside(x, image, self.config.in_channel)
        if self.time_embedding is None:
            return self.run(x, None, **options)
        level = levels(x, t).to(embedding_dtype(x))
        if self.config.network == "sr3":
            features = timestep_embedding(level, self.config.inner_channel, sin_first=True)
            return self.run(x, self.time_embedding(features.to(x.dtype)), **options)  # the linear layers follow at once
        features = step_embedding(level, self.config.inner_channel)
        return self.run(x, F.silu(self.time_embedding(features.to(x.dtype))), **options)


def beside(x: Tensor, image: Tensor | None, channels: int) -> Tensor:
    """The condition and the noisy picture as one input, (B, channels, H, W). Raises ValueError if they do not fit."""
    got = f"x is {tuple(x.shape)}, image {None if image is None else tuple(image.shape)}"
    if image is not None:
        fits = image.ndim == x.ndim and len(image) in (1, len(x)) and image.shape[2:] == x.shape[2:]
        expect(fits, f"image must be the condition at x's size, one a sample; {got}")
        x = torch.cat([image.to(x.dtype).expand(len(x), *image.shape[1:]), x], dim=1)
    expect(x.ndim == 4 and x.shape[1] == channels, f"image and x must have {channels} channels together; {got}")
    return x


def levels(x: Tensor, t: Tensor | None) -> Tensor:
    """(B,) of what is given as (B,) or (B, 1). Raises ValueError for another shape."""
    if t is None or t.numel() != len(x) or t.ndim not in (1, 2):
        raise ValueError(
            f"t must be ({len(x)},), one noise level a sample, got {None if t is None else tuple(t.shape)}"
        )
    return t.reshape(len(x))


def step_embedding(t: Tensor, dim: int) -> Tensor:
    """`timestep_embedding` of steps (B,), sines first, with the frequencies rounded as in the original's table: at step
    2000 one unit of float32 in them is 1e-4 of a radian."""
    frequencies = torch.exp(torch.arange(0, dim, 2, dtype=t.dtype, device=t.device) * (-math.log(10_000) / dim))
    angles = t[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
