"""Latent diffusion (Rombach et al. 2022): the U-Net of LDM and of Stable Diffusion 1, 2 and XL, and what goes around
it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect, unknown
from fastdiff.models.adm import ADMConfig, embed_times, group_norm32
from fastdiff.models.autoencoder import AutoencoderKL, AutoencoderVQ
from fastdiff.models.parts.backbone import Backbone
from fastdiff.models.parts.blocks import AttentionBlock, GroupNorm, conv_nd, mlp
from fastdiff.models.parts.transformer import SpatialTransformer

VECTOR_CONDITIONS = ("continuous", "timestep", "sequential")


@dataclass(frozen=True)
class LDMConfig(ADMConfig):
    """The arguments of latent-diffusion's `UNetModel`, and those that Stable Diffusion 2 and XL add to them.

    num_classes: a number, or what else is added to the embedding of the time: "sequential" for a vector of
    adm_in_channels (SDXL's sizes and pooled text), "continuous" for a number, "timestep" for a number embedded as times
    are. transformer_depth: of each level, or of all. context_dim: channels of the context; a list must repeat one
    number. n_embed: the network ends in logits over so many codes. legacy: num_heads_upsample has an effect.
    """

    num_classes: int | str | None = None  # type: ignore[assignment]
    num_heads: int = -1
    use_spatial_transformer: bool = False
    transformer_depth: int | tuple[int, ...] = 1
    context_dim: int | tuple[int, ...] | None = None
    n_embed: int | None = None
    legacy: bool = True
    disable_self_attentions: tuple[bool, ...] | None = None
    num_attention_blocks: tuple[int, ...] | None = None
    disable_middle_self_attn: bool = False
    disable_middle_transformer: bool = False
    use_linear_in_transformer: bool = False
    spatial_transformer_attn_type: str = "softmax"
    adm_in_channels: int | None = None

    def __post_init__(self) -> None:
        expect(self.num_heads != -1 or self.num_head_channels != -1, "num_heads or num_head_channels must be given")
        expect(
            not self.use_spatial_transformer or self.context_dim is not None,
            "use_spatial_transformer needs context_dim",
        )
        dims = self.context_dim
        expect(not isinstance(dims, tuple) or len(set(dims)) == 1, f"context_dim must repeat one number, got {dims}")
        if isinstance(self.num_classes, str) and self.num_classes not in VECTOR_CONDITIONS:
            raise unknown("num_classes", self.num_classes, VECTOR_CONDITIONS)

    @property
    def context_channels(self) -> int | None:
        """context_dim as one number."""
        return self.context_dim[0] if isinstance(self.context_dim, tuple) else self.context_dim

    def depth(self, level: int) -> int:
        """Of the transformers of a level."""
        return self.transformer_depth if isinstance(self.transformer_depth, int) else self.transformer_depth[level]

    def heads(self, place: str, channels: int) -> int:
        if self.num_head_channels == -1 and not self.legacy:
            return self.num_heads
        return super().heads("down" if self.use_spatial_transformer else place, channels)

    def attention(self, place: str, level: int, index: int, channels: int) -> nn.Module | None:
        if place == "middle":
            if self.disable_middle_transformer:
                return nn.Identity()
            only_context = self.disable_middle_self_attn
        else:
            if 2**level not in self.attention_resolutions:
                return None
            if self.num_attention_blocks is not None and index >= self.num_attention_blocks[level]:
                return None
            only_context = self.disable_self_attentions is not None and self.disable_self_attentions[level]
        heads = self.heads(place, channels)
        if not self.use_spatial_transformer:
            return AttentionBlock(channels, heads, norm=group_norm32)
        return SpatialTransformer(
            channels,
            heads,
            channels // heads if self.num_head_channels == -1 else self.num_head_channels,
            depth=self.depth(level),
            context_channels=self.context_channels,
            only_context=only_context,
            norm=transformer_norm,
        )


def transformer_norm(channels: int) -> GroupNorm:
    """The norm before a spatial transformer, and of the autoencoders: 32 groups, epsilon 1e-6."""
    return GroupNorm(32, channels, eps=1e-6)


class LDMEmbeddings(nn.Module):
    """What the blocks of a U-Net of these, and of a ControlNet's half of one, are given beside the features."""

    config: LDMConfig

    def add_embeddings(self, config: LDMConfig) -> None:
        """Make the layers. Raises ValueError for "sequential" classes without adm_in_channels."""
        self.config = config
        width, embedding = config.model_channels, 4 * config.model_channels
        self.time_embedding = mlp(width, embedding)
        self.class_embedding: nn.Module | None = None
        if isinstance(config.num_classes, int):
            self.class_embedding = nn.Embedding(config.num_classes, embedding)
        elif config.num_classes == "continuous":
            self.class_embedding = nn.Linear(1, embedding)
        elif config.num_classes == "timestep":
            self.class_embedding = mlp(width, embedding)
        elif config.num_classes == "sequential":
            if config.adm_in_channels is None:
                raise ValueError("num_classes 'sequential' needs adm_in_channels")
            self.class_embedding = mlp(config.adm_in_channels, embedding)

    def embed(self, x: Tensor, t: Tensor, context: Tensor | None, y: Tensor | None) -> Tensor:
        """(B, 4 model_channels), the embedding after the activation. Arguments: the call's. Raises ValueError where
        they do not fit."""
        config = self.config
        expect(
            context is None or (context.ndim == 3 and context.shape[::2] == (len(x), config.context_channels)),
            f"context must be ({len(x)}, S, {config.context_channels}), got "
            f"{None if context is None else tuple(context.shape)}",
        )
        embedding = self.time_embedding(embed_times(x, t, config.model_channels))
        if self.class_embedding is not None:
            if y is None or len(y) != len(x):
                raise ValueError(
                    f"y must have one row a sample ({len(x)}), got {None if y is None else tuple(y.shape)}"
                )
            if config.num_classes == "timestep":
                y = embed_times(x, y, config.model_channels)
            embedding = embedding + self.class_embedding(y if isinstance(config.num_classes, int) else y.to(x.dtype))
        else:
            expect(y is None, "y was given, but the model has no classes")
        return F.silu(embedding)


class LDMUNet(LDMEmbeddings, Backbone):
    """Noise-prediction network on latents: `model(x, t, context, y)` -> (B, out_channels, H, W).

    x: (B, in_channels, H, W). t: (B,) training times, fractional ones included. context: (B, S, context_dim), of the
    text say; without it the transformers attend to the pixels. y: for a model with num_classes, (B,) int64 classes, (B,
    adm_in_channels) if "sequential", (B, 1) if "continuous", (B,) if "timestep". Raises ValueError where these do not
    fit.
    """

    def __init__(self, config: LDMConfig) -> None:
        super().__init__(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            stem_channels=config.model_channels,
            norm=group_norm32,
            **config.parts(),
        )
        self.add_embeddings(config)
        self.norm_codes = self.conv_codes = None
        if config.n_embed is not None:
            self.norm_codes = group_norm32(config.model_channels)
            self.conv_codes = conv_nd(config.dims, config.model_channels, config.n_embed, 1)

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, y: Tensor | None = None, **options: Any
    ) -> Tensor:
        embedding = self.embed(x, t, context, y)
        if self.norm_codes is None or self.conv_codes is None:
            return self.run(x, embedding, context, **options)
        h = self.features(x, embedding, context, **options)
        return self.conv_codes(self.norm_codes(h))


class ClassEmbedder(nn.Module):
    """Classes as a context of one token: (B,) int64 -> (B, 1, channels) (LDM's conditioning on ImageNet's classes)."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, channels)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding(y)[:, None]


class LatentDiffusion(nn.Module):
    """A U-Net in the latent space of an autoencoder: `model(z, t, context, y, ...)` is the U-Net's call.

    scale_factor: of the latents, so that they have unit variance (Rombach et al. 2022, Appendix G): 0.18215 for Stable
    Diffusion 1 and 2, 0.13025 for XL.
    """

    def __init__(self, unet: nn.Module, autoencoder: AutoencoderKL | AutoencoderVQ, scale_factor: float = 1.0) -> None:
        super().__init__()
        self.unet, self.autoencoder, self.scale_factor = unet, autoencoder, scale_factor

    def forward(
        self, z: Tensor, t: Tensor, context: Tensor | None = None, y: Tensor | None = None, **options: Any
    ) -> Tensor:
        return self.unet(z, t, context, y, **options)

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Pictures in [-1, 1] to latents. noise: standard normal, in the latents' shape, for a draw from the posterior
        of an AutoencoderKL; its mean otherwise."""
        if isinstance(self.autoencoder, AutoencoderVQ):
            expect(noise is None, "an AutoencoderVQ has no posterior to draw from")
            return self.scale_factor * self.autoencoder.encode(x)
        posterior = self.autoencoder.encode(x)
        return self.scale_factor * (posterior.mean if noise is None else posterior.sample(noise))

    def decode(self, z: Tensor) -> Tensor:
        """Latents to pictures in [-1, 1], to which the decoder's values are limited: it goes a little beyond.
        `autoencoder.decode(z / scale_factor)` gives them as they are. Raises ValueError for another shape."""
        return self.autoencoder.decode(z / self.scale_factor).clamp(-1, 1)


def size_vector(pooled: Tensor, numbers: Tensor, *, channels: int = 256) -> Tensor:
    """The vector y of Stable Diffusion XL: (B, P) and (B, N) -> (B, P + N channels) (Podell et al. 2023, Section 2.2).

    pooled: of the text encoder. numbers: original height and width, top and left of the crop, target height and width
    (the refiner: an aesthetic score in place of the target). channels: of each number's sinusoidal embedding.
    """
    from fastdiff.models.parts.blocks import embedding_dtype, timestep_embedding

    embedded = timestep_embedding(numbers.flatten().to(embedding_dtype(pooled)), channels)
    return torch.cat([pooled, embedded.reshape(len(pooled), -1).to(pooled.dtype)], dim=1)
