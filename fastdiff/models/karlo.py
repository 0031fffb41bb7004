"""Karlo (Kakao Brain 2022), an unCLIP (Ramesh et al. 2022): its decoder and super-resolution. Its prior is
`fastdiff.models.prior.Prior`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.adm import ADMConfig, embed_times, group_norm32
from fastdiff.models.parts.backbone import Backbone
from fastdiff.models.parts.blocks import AttentionBlock, ResBlock, mlp
from fastdiff.models.unclip import UnCLIPConditioning, UnCLIPConfig


@dataclass(frozen=True)
class KarloUNetConfig(ADMConfig):
    """The arguments of Karlo's `UNetModel`, and super_res of its subclass.

    use_middle_attention: whether there is attention between the blocks in the middle. use_time_embedding: False for a
    network that knows no times. clip_dim: channels of a vector that is added to the embedding of the times.
    encoder_channels: must be None; the original makes layers for a context, and gives them none. super_res: the network
    sees another picture as well, of x's size.
    """

    clip_dim: int | None = None
    use_middle_attention: bool = True
    encoder_channels: int | None = None
    use_time_embedding: bool = True
    super_res: bool = False

    def __post_init__(self) -> None:
        expect(self.encoder_channels is None, f"encoder_channels must be None, got {self.encoder_channels}")

    @property
    def context_channels(self) -> int | None:
        """Of a context that all attention sees beside the pixels."""
        return None

    def attention(self, place: str, level: int, index: int, channels: int) -> nn.Module | None:
        if place == "middle":
            if not self.use_middle_attention:
                return None
        elif 2**level not in self.attention_resolutions:
            return None
        heads = self.heads(place, channels)
        return AttentionBlock(channels, heads, norm=group_norm32, context_channels=self.context_channels)

    def residual(self, in_channels: int, out_channels: int, resample: nn.Module | None = None) -> ResBlock:
        if self.use_time_embedding:
            return super().residual(in_channels, out_channels, resample)
        return ResBlock(
            in_channels, out_channels, None, norm=group_norm32, dropout=self.dropout, resample=resample, dims=self.dims
        )


class KarloUNet(Backbone):
    """`model(x, t, y, low_res=...)` -> (B, out_channels, H, W): the super-resolution, or a plain U-Net.

    x: (B, in_channels, H, W). t: (B,) training times; None without use_time_embedding. y: (B, clip_dim), for a model
    with clip_dim. low_res: (B, in_channels, H, W), for a model with super_res: the small picture, already enlarged.
    Raises ValueError where these do not fit.
    """

    def __init__(self, config: KarloUNetConfig) -> None:
        super().__init__(
            in_channels=config.in_channels * (1 + config.super_res),
            out_channels=config.out_channels,
            norm=group_norm32,
            **config.parts(),
        )
        self.config = config
        embedding = 4 * config.model_channels
        self.time_embedding = mlp(config.model_channels, embedding) if config.use_time_embedding else None
        wanted = config.clip_dim is not None and config.use_time_embedding
        self.vector_proj = nn.Linear(config.clip_dim, embedding) if wanted and config.clip_dim else None

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        y: Tensor | None = None,
        *,
        low_res: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        config = self.config
        if config.super_res:
            if low_res is None or low_res.shape != x.shape:
                raise ValueError(
                    f"low_res must be {tuple(x.shape)}, as x, got {None if low_res is None else tuple(low_res.shape)}"
                )
        else:
            expect(low_res is None, "low_res was given, but the model has no super_res")
        embedding = None
        if self.time_embedding is not None:
            expect(t is not None, f"t must be ({len(x)},), one time a sample, got None")
            assert t is not None  # else refused above
            embedding = self.time_embedding(embed_times(x, t, config.model_channels))
        if self.vector_proj is not None:
            if y is None or y.shape != (len(x), config.clip_dim):
                raise ValueError(
                    f"y must be ({len(x)}, {config.clip_dim}), got {None if y is None else tuple(y.shape)}"
                )
            embedding = embedding + self.vector_proj(y)
        else:
            expect(y is None, "y was given, but the model has no clip_dim")
        inputs = x if low_res is None else torch.cat([x, low_res], dim=1)
        return self.run(inputs, None if embedding is None else F.silu(embedding), **options)


@dataclass(frozen=True)
class KarloDecoderConfig(KarloUNetConfig):
    """The arguments of Karlo's `PLMImUNet`.

    xf_width: channels of the context. clip_dim: of the embeddings of the image, of the text and of its tokens.
    clip_emb_mult: tokens of the context that are made of the image's embedding. clip_emb_drop: how often training
    leaves the image out; if ever, the model has an embedding of no image. text_ctx changes nothing here.
    """

    text_ctx: int = 77
    xf_width: int = 1536
    clip_dim: int = 768  # type: ignore[assignment]
    clip_emb_mult: int = 4
    clip_emb_type: str = "image"
    clip_emb_drop: float = 0.0

    def __post_init__(self) -> None:
        expect(self.clip_emb_type == "image", f"clip_emb_type must be 'image', got {self.clip_emb_type!r}")
        expect(self.xf_width > 0, f"xf_width must be positive, got {self.xf_width}")
        expect(self.use_time_embedding, "use_time_embedding must be True: the decoder's embeddings are added to it")
        super().__post_init__()

    @property
    def context_channels(self) -> int:
        return self.xf_width

    @property
    def conditioning(self) -> UnCLIPConfig:
        """Of the image and of the text."""
        return UnCLIPConfig(
            time_embed_dim=4 * self.model_channels,
            cross_attention_dim=self.xf_width,
            clip_extra_context_tokens=self.clip_emb_mult,
            clip_embeddings_dim=self.clip_dim,
            learned_null=self.clip_emb_drop > 0,
        )


class KarloDecoder(Backbone):
    """Noise-prediction network: `model(x, t, image, text, tokens, mask)` -> (B, out_channels, H, W), the second half
    the variance where out_channels is twice in_channels.

    x: (B, in_channels, H, W). t: (B,) training times. image, text, tokens: see `UnCLIPConditioning`. mask: (B, S)
    boolean, False for padding. Raises ValueError where these do not fit.
    """

    def __init__(self, config: KarloDecoderConfig) -> None:
        super().__init__(
            in_channels=config.in_channels, out_channels=config.out_channels, norm=group_norm32, **config.parts()
        )
        self.config = config
        self.time_embedding = mlp(config.model_channels, 4 * config.model_channels)
        self.conditioning = UnCLIPConditioning(config.conditioning)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        image: Tensor | None,
        text: Tensor,
        tokens: Tensor,
        mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        context, added = self.conditioning(image, text, tokens)
        embedding = self.time_embedding(embed_times(x, t, self.config.model_channels)) + added
        return self.run(x, F.silu(embedding), self.conditioning.masked(context, mask), **options)
