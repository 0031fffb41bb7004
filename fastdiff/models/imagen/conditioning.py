"""What Imagen's U-Nets make of times, noise levels and texts (Saharia et al. 2022, Appendix D.3.1)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.imagen.attention import Pool
from fastdiff.models.imagen.config import MAX_TEXT, ImagenConfig
from fastdiff.models.parts.blocks import embedding_dtype, mlp


class TimeConditioning(nn.Module):
    """(B,) logarithms of signal-to-noise ratios -> an embedding (B, time channels) and tokens (B, n, C)."""

    def __init__(self, config: ImagenConfig) -> None:
        super().__init__()
        features, channels = config.learned_sinu_pos_emb_dim, config.time_channels
        expect(features % 2 == 0, f"learned_sinu_pos_emb_dim must be even, got {features}")
        self.frequencies = nn.Parameter(torch.randn(features // 2))
        self.hidden = nn.Linear(1 + features, channels)
        self.to_embedding = nn.Linear(channels, channels)
        self.to_tokens = nn.Linear(channels, config.num_time_tokens * config.condition_channels)
        self.count = config.num_time_tokens

    def forward(self, x: Tensor, t: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """x: whose dtype and batch it is. name: of the argument, for the error."""
        expect(t.shape == x.shape[:1], f"{name} must be ({len(x)},), one a sample, got {tuple(t.shape)}")
        t = t.to(embedding_dtype(x))[:, None]
        angles = t * self.frequencies.to(t.dtype) * 2 * math.pi
        features = torch.cat([t, angles.sin(), angles.cos()], dim=1).to(x.dtype)
        hidden = F.silu(self.hidden(features))
        return self.to_embedding(hidden), self.to_tokens(hidden).reshape(len(x), self.count, -1)


class TextConditioning(nn.Module):
    """A text's tokens, (B, S, text_embed_dim) -> an embedding (B, time channels) and tokens (B, n, C).

    mask: (B, S) boolean, False for padding, which is replaced by learned tokens. keep: (B,) boolean, False for a sample
    whose text is.
    """

    def __init__(self, config: ImagenConfig) -> None:
        super().__init__()
        channels = config.condition_channels
        self.length, self.text_channels = config.max_text_len, config.text_embed_dim
        self.proj = nn.Linear(config.text_embed_dim, channels)
        self.null_tokens = nn.Parameter(torch.randn(1, config.max_text_len, channels))
        self.null_embedding = nn.Parameter(torch.randn(1, config.time_channels))
        self.pool: Pool | None = None
        if config.attn_pool_text:
            self.pool = Pool(
                channels,
                config.attn_heads,
                config.attn_dim_head,
                latents=config.attn_pool_num_latents,
                max_length=MAX_TEXT,
            )
        self.norm = nn.LayerNorm(channels)
        self.to_embedding = mlp(channels, config.time_channels)

    def forward(
        self, x: Tensor, text: Tensor, mask: Tensor | None = None, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x: whose batch it is."""
        batch = len(x)
        expect(
            text.ndim == 3 and text.shape[::2] == (batch, self.text_channels),
            f"text must be ({batch}, S, {self.text_channels}), got {tuple(text.shape)}",
        )
        present = torch.ones(batch, 1, dtype=torch.bool, device=text.device)  # padding too, where no mask says so
        more = self.length - text.shape[1]
        if mask is not None:
            expect(mask.shape == text.shape[:2], f"mask must be {tuple(text.shape[:2])}, got {tuple(mask.shape)}")
            present = F.pad(mask.bool(), (0, more))  # cut if there are too many
        if keep is not None:
            expect(keep.shape == (batch,), f"keep_text must be ({batch},), got {tuple(keep.shape)}")
            present = present & keep.bool()[:, None]
        tokens = F.pad(self.proj(text), (0, 0, 0, more))
        tokens = torch.where(present[..., None], tokens, self.null_tokens.to(tokens.dtype))
        if self.pool is not None:
            tokens = self.pool(tokens)
        embedding = self.to_embedding(self.norm(tokens.mean(1)))
        if keep is not None:
            embedding = torch.where(keep.bool()[:, None], embedding, self.null_embedding.to(embedding.dtype))
        return embedding, tokens
