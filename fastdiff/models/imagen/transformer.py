"""Attention among the pixels with a feed-forward layer, as Imagen's U-Nets have it after some residual blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdiff.models.imagen.attention import LinearAttention, SelfAttention, feed_forward
from fastdiff.models.imagen.blocks import channel_feed_forward
from fastdiff.models.parts.blocks import Conditioned


class Transformer(Conditioned):
    """`depth` times attention to the pixels and to the conditions, and a feed-forward layer, each with a residual:
    (B, C, H, W) -> the same. context_channels: None for attention to the pixels alone."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        head_channels: int,
        *,
        depth: int,
        mult: float = 2.0,
        context_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.sees_context = context_channels is not None
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    SelfAttention(channels, num_heads, head_channels, context_channels=context_channels),
                    feed_forward(channels, mult),
                ]
            )
            for _ in range(depth)
        )

    def forward(
        self, x: Tensor, embedding: Tensor | None = None, context: Tensor | None = None, size: torch.Size | None = None
    ) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (B, H W, C)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleList)
            attention, ff = block
            tokens = tokens + attention(tokens, context if self.sees_context else None, x.shape[2:])
            tokens = tokens + ff(tokens)
        return tokens.transpose(1, 2).reshape(x.shape)


class LinearTransformer(Conditioned):
    """`Transformer` with linear attention."""

    def __init__(
        self, channels: int, num_heads: int, head_channels: int, *, depth: int, mult: float = 2.0, context_channels: int
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    LinearAttention(channels, num_heads, head_channels, context_channels=context_channels),
                    channel_feed_forward(channels, mult),
                ]
            )
            for _ in range(depth)
        )

    def forward(
        self, x: Tensor, embedding: Tensor | None = None, context: Tensor | None = None, size: torch.Size | None = None
    ) -> Tensor:
        for block in self.blocks:
            assert isinstance(block, nn.ModuleList)
            attention, ff = block
            x = x + attention(x, context)
            x = x + ff(x)
        return x
