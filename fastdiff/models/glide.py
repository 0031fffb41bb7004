"""GLIDE (Nichol et al. 2021): ADM conditioned on text by a transformer, with super-resolution and inpainting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.adm import ADMConfig, embed_times, group_norm32, resize_bilinear
from fastdiff.models.parts.backbone import Backbone
from fastdiff.models.parts.blocks import AttentionBlock, mlp
from fastdiff.models.parts.transformer import EncoderBlock


@dataclass(frozen=True)
class GLIDEConfig(ADMConfig):
    """The arguments of glide-text2im's `Text2ImUNet`.

    text_ctx: tokens of a text. xf_width: of the transformer, 0 for a model without text. xf_final_ln: a norm after it.
    xf_padding: tokens that the mask leaves out have embeddings of their own. n_vocab: tokens that there are. super_res,
    inpaint: what the network sees besides x (the original's subclasses). xf_ar, share_unemb (a head that only training
    uses) and cache_text_emb change nothing here.
    """

    text_ctx: int = 128
    xf_width: int = 512
    xf_layers: int = 16
    xf_heads: int = 8
    xf_final_ln: bool = True
    xf_padding: bool = False
    n_vocab: int = 50257
    cache_text_emb: bool = False
    xf_ar: float = 0.0
    share_unemb: bool = False
    super_res: bool = False
    inpaint: bool = False

    @property
    def input_channels(self) -> int:
        """Of the first convolution: x, the masked picture and its mask, the small picture."""
        return self.in_channels * (1 + self.inpaint + self.super_res) + self.inpaint

    def attention(self, place: str, level: int, index: int, channels: int) -> nn.Module | None:
        if place != "middle" and 2**level not in self.attention_resolutions:
            return None
        heads = self.heads(place, channels)
        return AttentionBlock(channels, heads, norm=group_norm32, context_channels=self.xf_width or None)


class GLIDE(Backbone):
    """Noise-prediction network: `model(x, t, tokens, mask)` -> (B, out_channels, H, W), the second half the variance.

    x: (B, in_channels, H, W). t: (B,) training times. tokens: (B, text_ctx) int64. mask: (B, text_ctx) boolean, False
    for padding. low_res: (B, in_channels, h, w), for a model with super_res. inpaint_image: (B, in_channels, H, W) and
    inpaint_mask: (B, 1, H, W), 1 where the picture is known, for a model with inpaint; nothing is known if not given.
    Raises ValueError where these do not fit.
    """

    def __init__(self, config: GLIDEConfig) -> None:
        super().__init__(
            in_channels=config.input_channels, out_channels=config.out_channels, norm=group_norm32, **config.parts()
        )
        self.config = config
        embedding = 4 * config.model_channels
        self.time_embedding = mlp(config.model_channels, embedding)
        self.text = TextTransformer(config, embedding) if config.xf_width else None

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        low_res: Tensor | None = None,
        inpaint_image: Tensor | None = None,
        inpaint_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        embedding = self.time_embedding(embed_times(x, t, self.config.model_channels))
        context = None
        if self.text is not None:
            if tokens is None:
                raise ValueError("tokens must be given to a model with text")
            pooled, context = self.text(tokens, mask)
            embedding = embedding + pooled
        inputs = [x]
        if self.config.inpaint:
            if inpaint_image is None or inpaint_mask is None:
                inpaint_image, inpaint_mask = torch.zeros_like(x), torch.zeros_like(x[:, :1])
            inputs += [inpaint_image * inpaint_mask, inpaint_mask]
        if self.config.super_res:
            if low_res is None:
                raise ValueError("low_res must be given to a model with super_res")
            inputs.append(resize_bilinear(low_res, x))
        return self.run(torch.cat(inputs, dim=1), F.silu(embedding), context, **options)


class TextTransformer(nn.Module):
    """(B, text_ctx) tokens and their mask -> (B, out_channels), of the last token, and (B, text_ctx, xf_width)."""

    def __init__(self, config: GLIDEConfig, out_channels: int) -> None:
        super().__init__()
        width, length = config.xf_width, config.text_ctx
        self.tokens = nn.Embedding(config.n_vocab, width)
        self.positions = nn.Parameter(torch.zeros(length, width))
        self.padding = nn.Parameter(torch.zeros(length, width)) if config.xf_padding else None
        self.blocks = nn.ModuleList(EncoderBlock(width, config.xf_heads) for _ in range(config.xf_layers))
        self.norm = nn.LayerNorm(width) if config.xf_final_ln else nn.Identity()
        self.proj = nn.Linear(width, out_channels)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        expect(
            tokens.ndim == 2 and tokens.shape[1] == len(self.positions),
            f"tokens must be (B, {len(self.positions)}), got {tuple(tokens.shape)}",
        )
        h = self.tokens(tokens.long()) + self.positions
        if self.padding is not None:
            if mask is None or mask.shape != tokens.shape:
                raise ValueError(
                    f"mask must be {tuple(tokens.shape)}, got {None if mask is None else tuple(mask.shape)}"
                )
            h = torch.where(mask.bool()[..., None], h, self.padding)
        for block in self.blocks:
            h = block(h)
        h = self.norm(h)
        return self.proj(h[:, -1]), h
