"""The decoder of unCLIP (Ramesh et al. 2022, Section 2.1): a U-Net that sees an image's embedding and a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.parts.attention import Context, Masked
from fastdiff.models.unet_2d_condition import UNet2DCondition


@dataclass(frozen=True)
class UnCLIPConfig:
    """The arguments of diffusers' `UnCLIPTextProjModel`.

    time_embed_dim: channels of the embedding of the times. cross_attention_dim: of the context's tokens.
    clip_extra_context_tokens: of them that are made of the image's embedding. clip_embeddings_dim: of the embeddings.
    learned_null: whether there is an embedding of no image (not diffusers': Karlo has a choice).
    """

    time_embed_dim: int
    cross_attention_dim: int
    clip_extra_context_tokens: int = 4
    clip_embeddings_dim: int = 768
    learned_null: bool = True


class UnCLIPConditioning(nn.Module):
    """What the U-Net is given: `(image, text, tokens)` -> a context (B, extra tokens + S, context channels), and what
    is added to the embedding of the times, (B, time channels).

    image: (B, channels), CLIP's embedding of an image; with fewer rows than text, no image for the first ones. None:
    for all. text: (B, channels), CLIP's embedding of the text. tokens: (B, S, channels), CLIP's of each token.
    """

    def __init__(self, config: UnCLIPConfig) -> None:
        super().__init__()
        self.config = config
        channels, time, context = config.clip_embeddings_dim, config.time_embed_dim, config.cross_attention_dim
        self.null_image = nn.Parameter(torch.zeros(channels)) if config.learned_null else None
        self.text_to_time = nn.Linear(channels, time)
        self.image_to_time = nn.Linear(channels, time)
        self.image_to_context = nn.Linear(channels, config.clip_extra_context_tokens * context)
        self.tokens_to_context = nn.Linear(channels, context)
        self.norm = nn.LayerNorm(context)

    def forward(self, image: Tensor | None, text: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        batch, channels = len(text), self.config.clip_embeddings_dim
        expect(text.shape == (batch, channels), f"text must be (B, {channels}), got {tuple(text.shape)}")
        expect(
            tokens.ndim == 3 and tokens.shape[::2] == (batch, channels),
            f"tokens must be ({batch}, S, {channels}), got {tuple(tokens.shape)}",
        )
        image = self.images(image, batch).to(text.dtype)
        extra = self.image_to_context(image).reshape(batch, -1, self.config.clip_extra_context_tokens)
        words = self.norm(self.tokens_to_context(tokens))
        context = torch.cat([extra.transpose(1, 2), words], dim=1)  # of an extra token the index is the fast one
        return context, self.image_to_time(image) + self.text_to_time(text)

    def images(self, image: Tensor | None, batch: int) -> Tensor:
        """(batch, channels): the embedding of no image, then those that are given. Raises ValueError if there are too
        many, or the model knows no embedding of no image and needs it."""
        channels = self.config.clip_embeddings_dim
        given = 0 if image is None else len(image)
        expect(
            image is None or (image.shape == (given, channels) and given <= batch),
            f"image must be ({batch}, {channels}), got {None if image is None else tuple(image.shape)}",
        )
        if image is not None and given == batch:
            return image
        if self.null_image is None:
            raise ValueError(f"image must be ({batch}, {channels}): the model has no embedding of no image")
        null = self.null_image.expand(batch - given, -1)
        return null if image is None else torch.cat([null.to(image.dtype), image])

    def masked(self, context: Tensor, mask: Tensor | None) -> Context:
        """The context without what the mask of the text's tokens leaves out, (B, S) boolean."""
        if mask is None:
            return context
        extra = self.config.clip_extra_context_tokens
        wanted = (len(context), context.shape[1] - extra)
        expect(mask.shape == wanted, f"mask must be {wanted}, got {tuple(mask.shape)}")
        return Masked(context, F.pad(mask.bool(), (extra, 0), value=True))


class UnCLIPDecoder(nn.Module):
    """`model(x, t, image, text, tokens, mask)` -> the U-Net's (B, out_channels, H, W), as diffusers runs Karlo.

    conditioning, unet: as `fastdiff.models.load` gives them of a pipeline's folder, by part="text_proj" and
    part="decoder". x: (B, in_channels, H, W). t: (B,) training times. image, text, tokens: see `UnCLIPConditioning`.
    mask: (B, S) boolean, False for padding.
    """

    def __init__(self, conditioning: UnCLIPConditioning, unet: UNet2DCondition) -> None:
        super().__init__()
        self.conditioning = conditioning
        self.unet = unet

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
        return self.unet(x, t, self.conditioning.masked(context, mask), added, **options)
