"""The networks of Karras et al. 2022, EDM: DDPM++ and NCSN++ of Song et al. 2021 (Appendix H), and ADM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect, unknown
from fastdiff.models.edm.filters import FilteredConv, filtered_downsample, filtered_upsample
from fastdiff.models.parts.backbone import Backbone, Stage, apply, take
from fastdiff.models.parts.blocks import AttentionBlock, Downsample, GroupNorm, ResBlock, Upsample, embedding_dtype, mlp
from fastdiff.models.parts.control import Control
from fastdiff.models.parts.reuse import Reuse


@dataclass(frozen=True)
class SongConfig:
    """The arguments of EDM's `SongUNet`.

    embedding_type: "positional" (DDPM++) or "fourier" (NCSN++). encoder_type: "standard", "skip" or "residual": whether
    the picture enters at each level again. decoder_type: "standard" or "skip": whether each level adds to the picture.
    resample_filter: [1, 1] for means and nearest neighbours. attn_resolutions: pixels a side, for pictures of
    img_resolution. channel_mult_emb, channel_mult_noise: channels of the embeddings, times model_channels.
    """

    img_resolution: int
    in_channels: int
    out_channels: int
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.10
    label_dropout: float = 0.0
    embedding_type: str = "positional"
    channel_mult_noise: int = 1
    encoder_type: str = "standard"
    decoder_type: str = "standard"
    resample_filter: tuple[float, ...] = (1, 1)

    def __post_init__(self) -> None:
        for field, known in (
            ("embedding_type", ("positional", "fourier")),
            ("encoder_type", ("standard", "skip", "residual")),
            ("decoder_type", ("standard", "skip")),
        ):
            if getattr(self, field) not in known:
                raise unknown(field, getattr(self, field), known)

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each level."""
        return tuple(self.model_channels * mult for mult in self.channel_mult)


class SongUNet(Backbone):
    """`model(x, noise_labels, class_labels, augment_labels)` -> (B, out_channels, H, W).

    x: (B, in_channels, H, W). noise_labels: (B,) or (1,), a function of sigma that the preconditioning chooses.
    class_labels: (B, label_dim), one-hot or zero. augment_labels: (B, augment_dim). control, reuse: see
    `Backbone.features`; reuse is for the standard encoder and decoder alone.
    """

    frequencies: Tensor  # with Fourier features of the noise

    def __init__(self, config: SongConfig) -> None:
        embedding = config.model_channels * config.channel_mult_emb
        noise = config.model_channels * config.channel_mult_noise
        levels = range(len(config.channel_mult))
        scale = math.sqrt(0.5)

        def norm(channels: int) -> GroupNorm:
            return small_group_norm(channels, eps=1e-6)

        def residual(in_channels: int, out_channels: int, resample: nn.Module | None = None) -> ResBlock:
            return ResBlock(
                in_channels,
                out_channels,
                embedding,
                norm=norm,
                adaptive=False,
                dropout=config.dropout,
                resample=resample,
                project_skip=resample is not None,
                output_scale=scale,
            )

        def attention(place: str, level: int, index: int, channels: int) -> nn.Module | None:
            listed = config.img_resolution >> level in config.attn_resolutions
            if place == "middle" or (listed and (place == "down" or index == config.num_blocks)):
                return AttentionBlock(channels, 1, norm=norm, output_scale=scale)
            return None

        super().__init__(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            channels=config.channels,
            stem_channels=config.model_channels,
            blocks=[config.num_blocks] * len(levels),
            residual=residual,
            attention=attention,
            down=lambda level, channels: residual(
                channels, channels, filtered_downsample(config.resample_filter, channels)
            ),
            up=lambda level, channels: residual(
                channels, channels, filtered_upsample(config.resample_filter, channels)
            ),
            norm=norm,
        )
        self.config = config
        if config.embedding_type == "fourier":
            self.register_buffer("frequencies", 16 * torch.randn(noise // 2))
        self.label_embedding = nn.Linear(config.label_dim, noise) if config.label_dim else None
        self.augment_embedding = nn.Linear(config.augment_dim, noise, bias=False) if config.augment_dim else None
        self.time_embedding = mlp(noise, embedding)

        # of each level but the first: the picture on its way down
        self.from_picture = nn.ModuleList()
        picture = config.in_channels
        for width in config.channels[:-1]:
            if config.encoder_type == "residual":
                self.from_picture.append(FilteredConv(picture, width, config.resample_filter))
                picture = width
            elif config.encoder_type == "skip":
                self.from_picture.append(nn.Conv2d(picture, width, 1))
        # of each level but the first, the last level first: what it adds to the picture on its way up
        self.to_picture = nn.ModuleList()
        if config.decoder_type == "skip":
            for width in reversed(config.channels[1:]):
                self.to_picture.append(PictureHead(norm(width), width, config.out_channels))
        self.down_picture = filtered_downsample(config.resample_filter, config.in_channels)
        self.up_picture = filtered_upsample(config.resample_filter, config.out_channels)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        *,
        control: Control | None = None,
        reuse: Reuse | None = None,
    ) -> Tensor:
        embedding = self._embed(x, noise_labels, class_labels, augment_labels)
        if self.config.encoder_type == self.config.decoder_type == "standard":
            return self.run(x, embedding, control=control, reuse=reuse)
        expect(reuse is None, "reuse needs encoder_type and decoder_type 'standard': the picture enters at each level")
        self.check(control)
        h, skips = self._down(x, embedding)
        h = self.middle(h, embedding)
        if control is not None and control.middle is not None:
            h = h + control.middle
        return self._up(h, skips, embedding, control)

    def _embed(self, x: Tensor, noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """The conditioning vector after its activation, (B, C) or (1, C)."""
        config = self.config
        noise = noise.to(embedding_dtype(x))
        if config.embedding_type == "fourier":
            angles = noise[:, None] * (2 * math.pi * self.frequencies).to(noise.dtype)
        else:
            angles = positional_angles(noise, config.model_channels * config.channel_mult_noise, endpoint=True)
        embedding = torch.cat([angles.sin(), angles.cos()], dim=1).to(x.dtype)
        if self.label_embedding is not None:
            labels = _drop_labels(labels, x, config.label_dim, config.label_dropout if self.training else 0.0)
            embedding = embedding + self.label_embedding(labels * math.sqrt(config.label_dim))
        if self.augment_embedding is not None and augment is not None:
            embedding = embedding + self.augment_embedding(augment)
        return F.silu(self.time_embedding(embedding))

    def _down(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        h, picture, level = self.conv_in(x), x, 0
        skips = [h]
        for stage in self.down:
            assert isinstance(stage, Stage)
            h = stage(h, embedding)
            if _resamples(stage[0]) and self.config.encoder_type != "standard":
                if self.config.encoder_type == "skip":
                    picture = self.down_picture(picture)
                    h = h + self.from_picture[level](picture)
                else:
                    h = picture = (h + self.from_picture[level](picture)) * math.sqrt(0.5)
                level += 1
            skips.append(h)
        return h, skips

    def _up(self, h: Tensor, skips: list[Tensor], embedding: Tensor, control: Control | None) -> Tensor:
        picture, level = None, 0
        for stage in self.up:
            h = torch.cat([h, take(skips, control)], dim=1)
            assert isinstance(stage, Stage)
            for layer in stage:
                if _resamples(layer) and self.config.decoder_type == "skip":  # the last layer of a level
                    added = self.to_picture[level](h)
                    picture = added if picture is None else added + self.up_picture(picture)
                    level += 1
                h = apply(layer, h, embedding, None)
        out = self.conv_out(self.norm_out(h, activation="silu"))
        return out if picture is None else out + self.up_picture(picture)


@dataclass(frozen=True)
class DhariwalConfig:
    """The arguments of EDM's `DhariwalUNet`, which are `SongConfig`'s without the choices that ADM has made."""

    img_resolution: int
    in_channels: int
    out_channels: int
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_emb: int = 4
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (32, 16, 8)
    dropout: float = 0.10
    label_dropout: float = 0.0

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each level."""
        return tuple(self.model_channels * mult for mult in self.channel_mult)


class DhariwalUNet(Backbone):
    """ADM as EDM trains it: `model(x, noise_labels, class_labels, augment_labels)`, as of `SongUNet`."""

    def __init__(self, config: DhariwalConfig) -> None:
        embedding = config.model_channels * config.channel_mult_emb

        def residual(in_channels: int, out_channels: int, resample: nn.Module | None = None) -> ResBlock:
            return ResBlock(
                in_channels, out_channels, embedding, norm=small_group_norm, dropout=config.dropout, resample=resample
            )

        def attention(place: str, level: int, index: int, channels: int) -> nn.Module | None:
            if place != "middle" and config.img_resolution >> level not in config.attn_resolutions:
                return None
            return AttentionBlock(channels, channels // 64, norm=small_group_norm) if channels >= 64 else None

        super().__init__(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            channels=config.channels,
            blocks=[config.num_blocks] * len(config.channel_mult),
            residual=residual,
            attention=attention,
            down=lambda level, channels: residual(channels, channels, Downsample(channels, conv=False)),
            up=lambda level, channels: residual(channels, channels, Upsample(channels, conv=False)),
            norm=small_group_norm,
        )
        self.config = config
        self.label_embedding = nn.Linear(config.label_dim, embedding, bias=False) if config.label_dim else None
        augment = config.augment_dim
        self.augment_embedding = nn.Linear(augment, config.model_channels, bias=False) if augment else None
        self.time_embedding = mlp(config.model_channels, embedding)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        config = self.config
        angles = positional_angles(noise_labels.to(embedding_dtype(x)), config.model_channels, endpoint=False)
        embedding = torch.cat([angles.cos(), angles.sin()], dim=1).to(x.dtype)
        if self.augment_embedding is not None and augment_labels is not None:
            embedding = embedding + self.augment_embedding(augment_labels)
        embedding = self.time_embedding(embedding)
        if self.label_embedding is not None:
            dropout = config.label_dropout if self.training else 0.0
            embedding = embedding + self.label_embedding(_drop_labels(class_labels, x, config.label_dim, dropout))
        return self.run(x, F.silu(embedding), **options)


def positional_angles(t: Tensor, channels: int, *, endpoint: bool) -> Tensor:
    """t times each frequency, (B, channels // 2): as in `timestep_embedding`; with `endpoint` the last one is 1/10,000.

    By powers, as in the original: at t = 999 the rounding of the frequencies is seen.
    """
    half = channels // 2
    steps = torch.arange(half, device=t.device, dtype=t.dtype) / (half - endpoint)
    return t[:, None] * (1 / 10_000) ** steps


def small_group_norm(channels: int, eps: float = 1e-5) -> GroupNorm:
    """At most 32 groups, of at least 4 channels."""
    return GroupNorm(min(32, channels // 4), channels, eps=eps)


class PictureHead(nn.Module):
    """What a level adds to the picture: norm, SiLU, convolution."""

    def __init__(self, norm: GroupNorm, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = norm
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x, activation="silu"))


def _resamples(layer: nn.Module) -> bool:
    return isinstance(layer, ResBlock) and layer.resample is not None


def _drop_labels(labels: Tensor | None, x: Tensor, label_dim: int, share: float) -> Tensor:
    """Labels (B, label_dim), zero where there are none and for a random share of the samples."""
    if labels is None:
        return x.new_zeros(1, label_dim)
    expect(
        labels.ndim == 2 and labels.shape[1] == label_dim,
        f"class_labels must be (B, {label_dim}), got {tuple(labels.shape)}",
    )
    kept = (
        torch.rand(len(x), 1, device=x.device) >= share if share else torch.ones((), dtype=torch.bool, device=x.device)
    )
    return labels.to(x.dtype) * kept.to(x)
