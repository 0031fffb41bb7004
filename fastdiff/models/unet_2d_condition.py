"""The U-Net that the config of diffusers' UNet2DConditionModel describes: Stable Diffusion's, Karlo's and others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect, unknown
from fastdiff.models.parts.attention import Context, Masked, unmasked
from fastdiff.models.parts.backbone import Backbone
from fastdiff.models.parts.blocks import (
    AttentionBlock,
    Downsample,
    ResBlock,
    Upsample,
    embedding_dtype,
    mlp,
    timestep_embedding,
)
from fastdiff.models.parts.transformer import SpatialTransformer
from fastdiff.models.unet_2d import (
    BLOCK_TYPES,
    TimeFeatures,
    UNet2DConfig,
    class_embedding,
    embed_class,
    grouped,
    per_level,
)


@dataclass(frozen=True)
class UNet2DConditionConfig(UNet2DConfig):
    """The arguments of `UNet2DConditionModel`, but for those of variants that are refused (see `REFUSED`)."""

    only_cross_attention: bool | tuple[bool, ...] = False
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple[Any, ...] = 1
    reverse_transformer_layers_per_block: tuple[Any, ...] | None = None
    encoder_hid_dim: int | None = None
    encoder_hid_dim_type: str | None = None
    num_attention_heads: int | tuple[int, ...] | None = None
    use_linear_projection: bool = False
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    addition_embed_type_num_heads: int = 64
    upcast_attention: bool = False
    time_embedding_act_fn: str | None = None
    timestep_post_act: str | None = None
    time_cond_proj_dim: int | None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3
    projection_class_embeddings_input_dim: int | None = None
    class_embeddings_concat: bool = False
    mid_block_only_cross_attention: bool | None = None
    dual_cross_attention: bool = False
    attention_type: str = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    cross_attention_norm: str | None = None

    @property
    def embedding_channels(self) -> int:
        """Of the embedding of the time."""
        widths = 2 if self.time_embedding_type == "fourier" else 4
        return self.time_embedding_dim or widths * self.block_out_channels[0]

    def parts(self) -> dict[str, Any]:
        """The arguments of a backbone. Raises ValueError for variants that are refused."""
        for field, value in REFUSED.items():
            given = getattr(self, field)
            expect(given == value, f"{field} must be {value!r}, got {given!r}: this variant is not implemented")
        middle_type = self.mid_block_type
        if middle_type not in MIDDLES:
            raise unknown("mid_block_type", middle_type, [str(name) for name in MIDDLES])
        levels = len(self.block_out_channels)
        sizes = per_level(self.attention_head_dim, levels)
        heads = per_level(self.num_attention_heads or self.attention_head_dim, levels)
        context = per_level(self.cross_attention_dim, levels)
        only = per_level(self.only_cross_attention, levels)
        middle_only = self.mid_block_only_cross_attention
        if middle_only is None:
            middle_only = self.only_cross_attention is True
        depths = per_level(self.transformer_layers_per_block, levels)
        up_depths = self.reverse_transformer_layers_per_block or depths[::-1]

        def attention(place: str, level: int, index: int, channels: int) -> nn.Module | None:
            kind, alone = MIDDLES[middle_type], middle_only
            if place != "middle":
                alone = only[level]
                kind, _ = BLOCK_TYPES[self.block_type(place, level)]
            if kind is None:
                return None
            if kind != "cross":  # channels of a head, which diffusers does not reverse on the way up
                size = sizes[levels - 1 - level if place == "up" else level]
                if kind == "self":
                    return AttentionBlock(channels, channels // size, norm=self.norm)
                return AttentionBlock(
                    channels,
                    channels // size,
                    norm=grouped(self.norm_num_groups, 1e-5),
                    context_channels=context[level],
                    only_context=alone,
                )
            depth = up_depths[levels - 1 - level] if place == "up" else depths[level]
            return SpatialTransformer(
                channels,
                heads[level],
                channels // heads[level],
                depth=depth[index] if isinstance(depth, tuple) else depth,
                context_channels=context[level],
                only_context=place != "middle" and only[level],
                norm=grouped(self.norm_num_groups, 1e-6),
            )

        def resampled(place: str, level: int, channels: int, plain: type[nn.Module]) -> nn.Module:
            if BLOCK_TYPES[self.block_type(place, level)][1]:
                return self.residual(channels, channels, self._inner, resample=plain(channels, conv=False))
            return plain(channels, **({"padding": self.downsample_padding} if plain is Downsample else {}))

        return {
            "in_channels": self.in_channels,
            "channels": self.block_out_channels,
            "blocks": self.layers,
            "residual": lambda i, o: self.residual(i, o, self._inner),
            "attention": attention,
            "down": lambda level, channels: resampled("down", level, channels, Downsample),
            "up": lambda level, channels: resampled("up", level, channels, Upsample),
            "middle": self._middle,
            "has_middle": MIDDLES[middle_type] is not None,
            "stem_kernel": self.conv_in_kernel,
        }

    def rest_of_middle(self, width: int) -> list[nn.Module]:
        """The middle's one block, where its type is the one without attention."""
        return [self._middle(width, width)] if self.mid_block_type == "UNetMidBlock2D" else []

    @property
    def _inner(self) -> int:
        """Channels of the embedding that residual blocks are given."""
        return 2 * self.embedding_channels if self.class_embeddings_concat else self.embedding_channels

    def _middle(self, in_channels: int, out_channels: int) -> ResBlock:
        return self.residual(in_channels, out_channels, self._inner, scale=self.mid_block_scale_factor)


# Of UNet2DConditionModel, the only value that is taken; others belong to variants of other papers.
REFUSED = {
    "dual_cross_attention": False,
    "attention_type": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "cross_attention_norm": None,
}
MIDDLES = {None: None, "UNetMidBlock2D": None, "UNetMidBlock2DCrossAttn": "cross",
           "UNetMidBlock2DSimpleCrossAttn": "joint"}  # fmt: skip


class ConditionEmbeddings(nn.Module):
    """The embeddings of a U-Net that such a config describes, and of a ControlNet's half of one."""

    config: UNet2DConditionConfig

    def add_embeddings(self, config: UNet2DConditionConfig) -> None:
        """Make the layers. Raises ValueError for embeddings of other kinds."""
        width, fourier = config.block_out_channels[0], config.time_embedding_type == "fourier"
        embedding, context = config.embedding_channels, per_level(config.cross_attention_dim, len(config.layers))
        self.config = config
        self.times = TimeFeatures(config, embedding // 2 if fourier else width, log=False)
        self.time_embedding = mlp(self.times.channels, embedding)
        guidance = config.time_cond_proj_dim
        self.cond_proj = None if guidance is None else nn.Linear(guidance, self.times.channels, bias=False)
        self.class_embedding = class_embedding(config, self.times.channels, embedding)
        self.context_proj = self.add_embedding = None
        hidden = config.encoder_hid_dim_type or ("text_proj" if config.encoder_hid_dim is not None else None)
        if hidden is not None:
            if hidden != "text_proj" or config.encoder_hid_dim is None:
                raise unknown("encoder_hid_dim_type", hidden, ("text_proj",))
            self.context_proj = nn.Linear(config.encoder_hid_dim, context[0])
        if config.addition_embed_type is not None:
            if config.addition_embed_type != "text_time":
                raise unknown("addition_embed_type", config.addition_embed_type, ("text_time",))
            assert config.projection_class_embeddings_input_dim is not None
            self.add_embedding = mlp(config.projection_class_embeddings_input_dim, embedding)

    def embed(
        self,
        x: Tensor,
        t: Tensor,
        context: Context | None,
        class_labels: Tensor | None,
        timestep_cond: Tensor | None,
        text_embeds: Tensor | None,
        time_ids: Tensor | None,
    ) -> tuple[Tensor, Context | None]:
        """What the blocks are given: the embedding after the activation, and the context. Arguments: the call's."""
        config = self.config
        features = self.times(x, t)
        if self.cond_proj is not None and timestep_cond is not None:
            features = features + self.cond_proj(timestep_cond)
        embedding = _activated(config.timestep_post_act, self.time_embedding(features))
        if self.class_embedding is not None:
            classes = embed_class(self, x, class_labels)
            embedding = torch.cat([embedding, classes], 1) if config.class_embeddings_concat else embedding + classes
        if self.add_embedding is not None:
            if text_embeds is None or time_ids is None:
                raise ValueError(
                    "text_embeds and time_ids must be given to a model with addition_embed_type 'text_time'"
                )
            embedding = embedding + self.add_embedding(self._added(x, text_embeds, time_ids))
        embedding = _activated(config.time_embedding_act_fn, embedding)
        if self.context_proj is not None and context is not None:
            tokens, _ = unmasked(context)
            projected = self.context_proj(tokens)
            context = Masked(projected, context.mask) if isinstance(context, Masked) else projected
        return F.silu(embedding), context

    def _added(self, x: Tensor, text_embeds: Tensor, time_ids: Tensor) -> Tensor:
        """The pooled text and the embedded sizes of SDXL, (B, P + N addition_time_embed_dim)."""
        config = self.config
        assert config.addition_time_embed_dim is not None
        numbers = timestep_embedding(
            time_ids.flatten().to(embedding_dtype(x)),
            config.addition_time_embed_dim,
            sin_first=not config.flip_sin_to_cos,
            shift=config.freq_shift,
        )
        return torch.cat([text_embeds, numbers.reshape(len(x), -1).to(text_embeds.dtype)], dim=1)


class UNet2DCondition(ConditionEmbeddings, Backbone):
    """`model(x, t, context, class_labels, ...)` -> (B, out_channels, H, W): diffusers' UNet2DConditionModel.

    x: (B, in_channels, H, W), any H and W. t: (B,) times. context: (B, S, cross_attention_dim), or encoder_hid_dim if
    it is projected first; `Masked` where some tokens do not count. class_labels: (B,) int64, or what class_embed_type
    takes. timestep_cond: (B, time_cond_proj_dim), of a guidance scale say. text_embeds (B, P) and time_ids (B, N): of
    Stable Diffusion XL (addition_embed_type "text_time"). Raises ValueError where these do not fit.
    """

    def __init__(self, config: UNet2DConditionConfig) -> None:
        if config.num_attention_heads is not None:
            raise ValueError(
                "num_attention_heads must be None; diffusers reads the number of heads from attention_head_dim"
            )
        super().__init__(
            out_channels=config.out_channels, norm=config.norm, head_kernel=config.conv_out_kernel, **config.parts()
        )
        self.middle.extend(config.rest_of_middle(self.width))
        self.add_embeddings(config)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Context | None = None,
        class_labels: Tensor | None = None,
        *,
        timestep_cond: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        embedding, context = self.embed(x, t, context, class_labels, timestep_cond, text_embeds, time_ids)
        return self.run(2 * x - 1 if self.config.center_input_sample else x, embedding, context, **options)


def _activated(name: str | None, x: Tensor) -> Tensor:
    if name is None:
        return x
    known: dict[str, Any] = {"silu": F.silu, "swish": F.silu, "gelu": F.gelu, "relu": F.relu, "mish": F.mish}
    if name not in known:
        raise unknown("activation", name, known)
    return known[name](x)
