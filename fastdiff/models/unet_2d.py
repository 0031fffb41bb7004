"""The U-Net that the config of diffusers' UNet2DModel describes, and what it shares with UNet2DConditionModel's."""

from __future__ import annotations

import math
from collections.abc import Iterable
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
    Norm,
    ResBlock,
    Upsample,
    embedding_dtype,
    mlp,
    timestep_embedding,
)

# Attention after each residual block of a level, by the type of its blocks; and whether a residual block resamples.
BLOCK_TYPES = {
    "DownBlock2D": (None, False),
    "UpBlock2D": (None, False),
    "ResnetDownsampleBlock2D": (None, True),
    "ResnetUpsampleBlock2D": (None, True),
    "AttnDownBlock2D": ("self", False),
    "AttnUpBlock2D": ("self", False),
    "CrossAttnDownBlock2D": ("cross", False),
    "CrossAttnUpBlock2D": ("cross", False),
    "SimpleCrossAttnDownBlock2D": ("joint", True),
    "SimpleCrossAttnUpBlock2D": ("joint", True),
}
ACTIVATIONS = ("silu", "swish")


@dataclass(frozen=True)
class UNet2DConfig:
    """What `UNet2DModel` and `UNet2DConditionModel` share of their constructors' arguments.

    attention_head_dim: channels of a head; in UNet2DConditionModel the number of heads of the
    transformers. Values that change nothing here: sample_size, dropout_type, upcast_attention, use_linear_projection.
    """

    in_channels: int
    out_channels: int
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    block_out_channels: tuple[int, ...]
    mid_block_type: str | None
    layers_per_block: int | tuple[int, ...] = 2
    sample_size: int | tuple[int, int] | None = None
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | tuple[int, ...] | None = 8
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    class_embed_type: str | None = None
    num_class_embeds: int | None = None

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for field in ("down_block_types", "up_block_types"):
            types = getattr(self, field)
            expect(len(types) == levels, f"{field} must have {levels} entries, as block_out_channels, got {len(types)}")
            for block in types:
                if block not in BLOCK_TYPES:
                    raise unknown(f"block in {field}", block, BLOCK_TYPES)
        if self.act_fn not in ACTIVATIONS:
            raise unknown("act_fn", self.act_fn, ACTIVATIONS)
        if self.resnet_time_scale_shift not in ("default", "scale_shift"):
            raise unknown("resnet_time_scale_shift", self.resnet_time_scale_shift, ("default", "scale_shift"))

    @property
    def layers(self) -> tuple[int, ...]:
        """Residual blocks of each level on the way down."""
        return per_level(self.layers_per_block, len(self.block_out_channels))

    def block_type(self, place: str, level: int) -> str:
        """Of a level on the way down or up."""
        return self.down_block_types[level] if place == "down" else self.up_block_types[-1 - level]

    def norm(self, channels: int) -> GroupNorm:
        """The norm of all blocks."""
        return GroupNorm(self.norm_num_groups, channels, eps=self.norm_eps)

    def residual(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        *,
        resample: nn.Module | None = None,
        scale: float = 1.0,
    ) -> ResBlock:
        """A residual block; scale: what its result is divided by."""
        return ResBlock(
            in_channels,
            out_channels,
            embedding_channels,
            norm=self.norm,
            adaptive=self.resnet_time_scale_shift == "scale_shift",
            dropout=self.dropout,
            resample=resample,
            output_scale=1 / scale,
        )


@dataclass(frozen=True)
class UNet2DModelConfig(UNet2DConfig):
    """The arguments of `UNet2DModel`.

    downsample_type, upsample_type: "conv" or "resnet", of the levels with attention. attn_norm_num_groups: of the
    middle's attention. add_attention: whether the middle has any. num_train_timesteps: for time_embedding_type
    "learned".
    """

    downsample_type: str = "conv"
    upsample_type: str = "conv"
    attn_norm_num_groups: int | None = None
    add_attention: bool = True
    num_train_timesteps: int | None = None


class UNet2D(Backbone):
    """`model(x, t, class_labels)` -> (B, out_channels, H, W): diffusers' UNet2DModel.

    x: (B, in_channels, H, W). t: (B,) times. class_labels: (B,) int64, (B,) numbers for class_embed_type "timestep", or
    (B, embedding) for "identity". Raises ValueError where these do not fit.
    """

    def __init__(self, config: UNet2DModelConfig) -> None:
        width = config.block_out_channels[0]
        embedding = config.time_embedding_dim or 4 * width
        # diffusers leaves the norm out with "scale_shift"
        plain = config.resnet_time_scale_shift == "default"
        middle_norm: Norm = config.norm if plain else lambda channels: nn.Identity()
        if config.attn_norm_num_groups is not None:
            middle_norm = grouped(config.attn_norm_num_groups, config.norm_eps)
        if config.mid_block_type not in (None, "UNetMidBlock2D"):
            raise unknown("mid_block_type", config.mid_block_type, ("UNetMidBlock2D",))

        def head_count(channels: int) -> int:
            size = config.attention_head_dim
            assert not isinstance(size, tuple)
            return channels // (size or channels)

        def attention(place: str, level: int, index: int, channels: int) -> nn.Module | None:
            if place == "middle":
                if not config.add_attention:
                    return None
                scale = 1 / config.mid_block_scale_factor
                return AttentionBlock(channels, head_count(channels), norm=middle_norm, output_scale=scale)
            kind, _ = BLOCK_TYPES[config.block_type(place, level)]
            if kind in ("cross", "joint"):
                raise unknown("block of UNet2DModel", config.block_type(place, level), BLOCK_TYPES)
            return AttentionBlock(channels, head_count(channels), norm=config.norm) if kind else None

        def resampled(place: str, level: int, channels: int, kind: str, plain: type[nn.Module]) -> nn.Module:
            attends, by_block = BLOCK_TYPES[config.block_type(place, level)]
            if by_block or (attends and kind == "resnet"):
                return config.residual(channels, channels, embedding, resample=plain(channels, conv=False))
            return plain(channels, **({"padding": config.downsample_padding} if plain is Downsample else {}))

        super().__init__(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            channels=config.block_out_channels,
            blocks=config.layers,
            residual=lambda i, o: config.residual(i, o, embedding),
            attention=attention,
            down=lambda level, channels: resampled("down", level, channels, config.downsample_type, Downsample),
            up=lambda level, channels: resampled("up", level, channels, config.upsample_type, Upsample),
            norm=config.norm,
            middle=lambda i, o: config.residual(i, o, embedding, scale=config.mid_block_scale_factor),
            has_middle=config.mid_block_type is not None,
        )
        self.config = config
        self.times = TimeFeatures(config, width, learned=config.num_train_timesteps)
        self.time_embedding = mlp(self.times.channels, embedding)
        self.class_embedding = class_embedding(config, self.times.channels, embedding)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None, **options: Any) -> Tensor:
        config = self.config
        embedding = self.time_embedding(self.times(x, t))
        if self.class_embedding is not None:
            embedding = embedding + embed_class(self, x, class_labels)
        else:
            expect(class_labels is None, "class_labels were given, but the model has no classes")
        out = self.run(2 * x - 1 if config.center_input_sample else x, F.silu(embedding), **options)
        return out / t.to(out.dtype)[:, None, None, None] if config.time_embedding_type == "fourier" else out


class TimeFeatures(nn.Module):
    """What is made of the times before the first linear layer: (B,) -> (B, channels), in x's dtype.

    log: whether Fourier features are of the logarithm, as in UNet2DModel. learned: a table of so many times.
    """

    def __init__(self, config: UNet2DConfig, width: int, *, log: bool = True, learned: int | None = None) -> None:
        super().__init__()
        kinds = ("positional", "fourier", "learned")
        if config.time_embedding_type not in kinds:
            raise unknown("time_embedding_type", config.time_embedding_type, kinds)
        self.config, self.width, self.log = config, width, log
        self.kind = config.time_embedding_type
        self.channels = 2 * width if self.kind == "fourier" else width
        if self.kind == "fourier":
            self.weight = nn.Parameter(16 * torch.randn(width), requires_grad=False)
        elif self.kind == "learned":
            if learned is None:
                raise ValueError("time_embedding_type 'learned' needs num_train_timesteps")
            self.weight = nn.Parameter(torch.randn(learned, width))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        expect(t.shape == x.shape[:1], f"t must be ({len(x)},), one time a sample, got {tuple(t.shape)}")
        return self.features(t, embedding_dtype(x)).to(x.dtype)

    def features(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Of times or other numbers (N,)."""
        if self.kind == "learned":
            return F.embedding(t.long(), self.weight)
        t = t.to(dtype)
        if self.kind == "positional":
            flip, shift = self.config.flip_sin_to_cos, self.config.freq_shift
            return timestep_embedding(t, self.width, sin_first=not flip, shift=shift)
        angles = 2 * math.pi * (t.log() if self.log else t)[:, None] * self.weight.to(dtype)
        first_cos = self.config.flip_sin_to_cos and not self.log  # UNet2DModel leaves the order as it is
        return torch.cat([angles.cos(), angles.sin()] if first_cos else [angles.sin(), angles.cos()], dim=1)


def per_level(value: Any, levels: int) -> tuple[Any, ...]:
    """One value a level, of one for all or of as many as there are. Raises ValueError for another number."""
    if not isinstance(value, Iterable):
        return (value,) * levels
    values = tuple(value)
    expect(len(values) == levels, f"expected {levels} values, one a level, got {values}")
    return values


def grouped(groups: int, eps: float) -> Norm:
    """From a number of channels to its group norm."""
    return lambda channels: GroupNorm(groups, channels, eps=eps)


def class_embedding(config: Any, features: int, embedding: int) -> nn.Module | None:
    """What makes (B, embedding) of the class labels; None for a model without. features: of an embedded time."""
    kind = config.class_embed_type
    kinds = ("timestep", "identity", "projection", "simple_projection")
    if kind is None:
        return None if config.num_class_embeds is None else nn.Embedding(config.num_class_embeds, embedding)
    if kind not in kinds:
        raise unknown("class_embed_type", kind, kinds)
    if kind == "timestep":
        return mlp(features, embedding)
    if kind == "identity":
        return nn.Identity()
    size = config.projection_class_embeddings_input_dim
    return mlp(size, embedding) if kind == "projection" else nn.Linear(size, embedding)


def embed_class(model: Any, x: Tensor, labels: Tensor | None) -> Tensor:
    """(B, embedding) of the labels, by a UNet2D or UNet2DCondition with classes. Raises ValueError without labels."""
    if labels is None or len(labels) != len(x):
        raise ValueError(
            f"class_labels must have one row a sample ({len(x)}), got {None if labels is None else tuple(labels.shape)}"
        )
    if model.config.class_embed_type == "timestep":
        labels = model.times.features(labels, embedding_dtype(x)).to(x.dtype)
    return model.class_embedding(labels)
