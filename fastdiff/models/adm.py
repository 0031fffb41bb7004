"""The U-Nets of Dhariwal & Nichol 2021, ADM (guided-diffusion): diffusion, super-resolution, and the classifier on
noisy images; Nichol & Dhariwal 2021 (improved DDPM) is the case without their options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect, unknown
from fastdiff.models.parts.attention import attend, split_heads
from fastdiff.models.parts.backbone import Backbone, HalfBackbone
from fastdiff.models.parts.blocks import (
    AttentionBlock,
    Downsample,
    GroupNorm,
    ResBlock,
    Upsample,
    embedding_dtype,
    mlp,
    timestep_embedding,
    zero_init,
)

POOLS = ("adaptive", "attention", "spatial", "spatial_v2")


@dataclass(frozen=True)
class ADMConfig:
    """The arguments of guided-diffusion's `UNetModel`.

    num_res_blocks: of each level on the way down, or of all; one more on the way up. attention_resolutions: factors by
    which the resolution is halved where there is attention, 1 for none. num_head_channels: -1 for num_heads heads, and
    num_heads_upsample on the way up (-1: as many). use_checkpoint and use_fp16, which say how the original saves
    memory, use_new_attention_order, which says how it stores a projection, and image_size change nothing here.
    """

    in_channels: int
    model_channels: int
    out_channels: int
    num_res_blocks: int | tuple[int, ...]
    attention_resolutions: tuple[int, ...]
    image_size: int | None = None
    dropout: float = 0.0
    channel_mult: tuple[float, ...] = (1, 2, 4, 8)
    conv_resample: bool = True
    dims: int = 2
    num_classes: int | None = None
    use_checkpoint: bool = False
    use_fp16: bool = False
    num_heads: int = 1
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each level."""
        return tuple(int(mult * self.model_channels) for mult in self.channel_mult)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Residual blocks of each level on the way down."""
        per_level = self.num_res_blocks
        return (per_level,) * len(self.channel_mult) if isinstance(per_level, int) else tuple(per_level)

    def heads(self, place: str, channels: int) -> int:
        """Of the attention on the way "down", in the "middle" or on the way "up"."""
        if self.num_head_channels != -1:
            return channels // self.num_head_channels
        return self.num_heads if place != "up" or self.num_heads_upsample == -1 else self.num_heads_upsample

    def attention(self, place: str, level: int, index: int, channels: int) -> nn.Module | None:
        """What follows a residual block, as `backbone.Attention` says."""
        if place != "middle" and 2**level not in self.attention_resolutions:
            return None
        return AttentionBlock(channels, self.heads(place, channels), norm=group_norm32)

    def residual(self, in_channels: int, out_channels: int, resample: nn.Module | None = None) -> ResBlock:
        """A residual block, as `backbone.Residual` says. resample: what changes its resolution."""
        return ResBlock(
            in_channels,
            out_channels,
            4 * self.model_channels,
            norm=group_norm32,
            adaptive=self.use_scale_shift_norm,
            dropout=self.dropout,
            resample=resample,
            dims=self.dims,
        )

    def parts(self) -> dict[str, Any]:
        """The arguments of a backbone."""
        dims, conv, residual = self.dims, self.conv_resample and not self.resblock_updown, self.residual

        def down(level: int, channels: int) -> nn.Module:
            layer = Downsample(channels, conv=conv, dims=dims)
            return residual(channels, channels, layer) if self.resblock_updown else layer

        def up(level: int, channels: int) -> nn.Module:
            layer = Upsample(channels, conv=conv, dims=dims)
            return residual(channels, channels, layer) if self.resblock_updown else layer

        shape = {"channels": self.channels, "blocks": self.blocks, "dims": dims}
        return {**shape, "residual": residual, "attention": self.attention, "down": down, "up": up}


def group_norm32(channels: int) -> GroupNorm:
    """The norm of ADM and LDM: 32 groups, epsilon 1e-5."""
    return GroupNorm(32, channels)


class ADM(Backbone):
    """Noise-prediction network: `model(x, t, y)` -> (B, out_channels, H, W), whose second half, where out_channels is
    twice in_channels, tells the variance (Nichol & Dhariwal 2021, Eq. 15).

    x: (B, in_channels, H, W). t: (B,) training times, fractional ones included. y: (B,) int64 classes, for a model with
    classes. Raises ValueError where these do not fit.
    """

    def __init__(self, config: ADMConfig, *, input_channels: int | None = None) -> None:
        super().__init__(
            in_channels=input_channels or config.in_channels,
            out_channels=config.out_channels,
            norm=group_norm32,
            **config.parts(),
        )
        self.config = config
        embedding = 4 * config.model_channels
        self.time_embedding = mlp(config.model_channels, embedding)
        self.class_embedding = None if config.num_classes is None else nn.Embedding(config.num_classes, embedding)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, **options: Any) -> Tensor:
        embedding = self.time_embedding(embed_times(x, t, self.config.model_channels))
        if self.class_embedding is None:
            expect(y is None, "y was given, but the model has no classes")
        else:
            if y is None or y.shape != t.shape:
                raise ValueError(
                    f"y must be ({len(x)},), one class a sample, got {None if y is None else tuple(y.shape)}"
                )
            embedding = embedding + self.class_embedding(y)
        return self.run(x, F.silu(embedding), **options)


class ADMSuperResolution(ADM):
    """ADM that sees a smaller picture as well, resized and concatenated: `model(x, t, y, low_res=...)`.

    low_res: (B, in_channels, h, w), of any resolution. config.in_channels: of x alone.
    """

    def __init__(self, config: ADMConfig) -> None:
        super().__init__(config, input_channels=2 * config.in_channels)

    def forward(  # type: ignore[override]
        self, x: Tensor, t: Tensor, y: Tensor | None = None, *, low_res: Tensor, **options: Any
    ) -> Tensor:
        return super().forward(torch.cat([x, resize_bilinear(low_res, x)], dim=1), t, y, **options)


@dataclass(frozen=True)
class ADMClassifierConfig(ADMConfig):
    """The arguments of guided-diffusion's `EncoderUNetModel`. out_channels: the classes. pool: from features to
    logits. image_size: for pool "attention" the only resolution that the model takes."""

    pool: str = "adaptive"


class ADMClassifier(HalfBackbone):
    """Classifier of noisy images, for guidance: `model(x, t)` -> logits (B, out_channels).

    x: (B, in_channels, H, W). t: (B,) training times. pool: "adaptive" takes the mean of the features, "attention"
    lets it attend to them (Radford et al. 2021, CLIP, Section 2.4), "spatial" and "spatial_v2" take the means of all
    blocks' results.
    """

    def __init__(self, config: ADMClassifierConfig) -> None:
        if config.pool not in POOLS:
            raise unknown("pool", config.pool, POOLS)
        parts = config.parts()
        del parts["up"]
        super().__init__(in_channels=config.in_channels, **parts)
        self.config = config
        self.time_embedding = mlp(config.model_channels, 4 * config.model_channels)
        features = sum(self.skip_channels) + self.width
        if config.pool == "adaptive":
            self.norm_out = group_norm32(self.width)
            self.proj = zero_init(nn.Linear(self.width, config.out_channels))
        elif config.pool == "attention":
            expect(config.num_head_channels != -1, "pool 'attention' needs num_head_channels")
            expect(config.image_size is not None, "pool 'attention' needs image_size")
            assert config.image_size is not None
            size = config.image_size // 2 ** (len(config.channel_mult) - 1)
            self.norm_out = group_norm32(self.width)
            self.pool = AttentionPool(self.width, size**2, self.width // config.num_head_channels, config.out_channels)
        else:
            self.linear1 = nn.Linear(features, 2048)
            if config.pool == "spatial_v2":
                self.norm_out = group_norm32(2048)
            self.linear2 = nn.Linear(2048, config.out_channels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        embedding = self.time_embedding(embed_times(x, t, self.config.model_channels))
        h, skips = self.run_down(x, F.silu(embedding))
        if self.config.pool == "adaptive":
            means = self.norm_out(h, activation="silu").flatten(2).mean(2)
            return self.proj(means)
        if self.config.pool == "attention":
            return self.pool(self.norm_out(h, activation="silu"))
        h = self.linear1(torch.cat([features.flatten(2).mean(2) for features in (*skips, h)], dim=1))
        h = F.relu(h) if self.config.pool == "spatial" else self.norm_out(h, activation="silu")
        return self.linear2(h)


class AttentionPool(nn.Module):
    """The mean of the pixels attends to itself and to them: (B, channels, ...) -> (B, out_channels).

    pixels: how many there must be, since each has a learned position.
    """

    def __init__(self, channels: int, pixels: int, num_heads: int, out_channels: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.positions = nn.Parameter(torch.randn(channels, pixels + 1) / channels**0.5)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2)
        expect(
            pixels.shape[2] + 1 == self.positions.shape[1],
            f"the model takes features of {self.positions.shape[1] - 1} pixels, got {tuple(x.shape[2:])}",
        )
        tokens = torch.cat([pixels.mean(2, keepdim=True), pixels], dim=2) + self.positions.to(x.dtype)
        q, k, v = split_heads(self.qkv(tokens.transpose(1, 2)), 3, self.num_heads)
        return self.proj(attend(q[:, :, :1], k, v, layer=self, kind="self")[:, 0])


def embed_times(x: Tensor, t: Tensor, channels: int) -> Tensor:
    """ADM's embedding of the times of x, (B, channels) in its dtype. Raises ValueError unless there is one a sample."""
    expect(t.shape == x.shape[:1], f"t must be ({len(x)},), one time a sample, got {tuple(t.shape)}")
    return timestep_embedding(t.to(embedding_dtype(x)), channels).to(x.dtype)


def resize_bilinear(image: Tensor, x: Tensor) -> Tensor:
    """The image at x's resolution."""
    return F.interpolate(image, x.shape[2:], mode="bilinear", align_corners=False)
