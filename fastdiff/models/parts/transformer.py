"""Transformer blocks on the pixels of a feature map, conditioned by cross-attention (Rombach et al. 2022, Appendix
E.2.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.models.parts.attention import Context, attend, split_heads, unmasked
from fastdiff.models.parts.blocks import Norm, zero_init


class CrossAttention(nn.Module):
    """Attention of x (B, S, channels) to a context (B, T, context_channels), or to x itself: (B, S, channels).

    size: (H, W) of x's pixels.
    """

    def __init__(
        self, channels: int, num_heads: int, head_channels: int, *, context_channels: int | None, dropout: float
    ) -> None:
        super().__init__()
        inner = num_heads * head_channels
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(context_channels or channels, inner, bias=False)
        self.to_v = nn.Linear(context_channels or channels, inner, bias=False)
        self.to_out = nn.Linear(inner, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: Context | None = None, size: Sequence[int] = ()) -> Tensor:
        source, mask = (x, None) if context is None else unmasked(context)
        (q,), (k,), (v,) = (
            split_heads(tokens, 1, self.num_heads) for tokens in (self.to_q(x), self.to_k(source), self.to_v(source))
        )
        kind = "self" if context is None else "cross"
        return self.dropout(self.to_out(attend(q, k, v, layer=self, kind=kind, size=size, mask=mask)))


class GatedFeedForward(nn.Module):
    """GEGLU (Shazeer 2020, GLU Variants Improve Transformer, Eq. 6): (B, S, channels) -> (B, S, channels)."""

    def __init__(self, channels: int, *, dropout: float) -> None:
        super().__init__()
        self.proj_in = nn.Linear(channels, 8 * channels)
        self.dropout = nn.Dropout(dropout)
        self.proj_out = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(self.dropout(value * F.gelu(gate)))


class TransformerBlock(nn.Module):
    """Attention to itself, attention to the context, and a feed-forward layer, each on a norm and with a residual.

    context_channels: None where there is no context, and the second attention is to itself as well. only_context: the
    first attention is to the context, too. size: (H, W) of x's pixels.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        head_channels: int,
        *,
        context_channels: int | None,
        only_context: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.only_context = only_context
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = CrossAttention(
            channels,
            num_heads,
            head_channels,
            context_channels=context_channels if only_context else None,
            dropout=dropout,
        )
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = CrossAttention(
            channels, num_heads, head_channels, context_channels=context_channels, dropout=dropout
        )
        self.norm3 = nn.LayerNorm(channels)
        self.ff = GatedFeedForward(channels, dropout=dropout)

    def forward(self, x: Tensor, context: Context | None = None, size: Sequence[int] = ()) -> Tensor:
        x = x + self.attn1(self.norm1(x), context if self.only_context else None, size)
        x = x + self.attn2(self.norm2(x), context, size)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """`depth` transformer blocks on the pixels, with a residual around them: (B, channels, H, W) -> the same.

    The first and last layer are linear maps of each pixel, which some of the originals write as 1 x 1 convolutions.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        head_channels: int,
        *,
        depth: int,
        context_channels: int | None,
        norm: Norm,
        only_context: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inner = num_heads * head_channels
        self.norm = norm(channels)
        self.proj_in = nn.Linear(channels, inner)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                inner,
                num_heads,
                head_channels,
                context_channels=context_channels,
                only_context=only_context,
                dropout=dropout,
            )
            for _ in range(depth)
        )
        self.proj_out = zero_init(nn.Linear(inner, channels))

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (B, H W, inner)
        for block in self.blocks:
            tokens = block(tokens, context, x.shape[2:])
        return x + self.proj_out(tokens).transpose(1, 2).reshape(x.shape)


class EncoderBlock(nn.Module):
    """Attention and a feed-forward layer, each on a norm and with a residual: (B, S, width) -> the same.

    mask: which tokens each one sees, as of `fastdiff.ops.attention`; all of them if not given.
    """

    def __init__(self, width: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = split_heads(self.qkv(self.norm1(x)), 3, self.num_heads)
        x = x + self.dropout(self.proj(attend(q, k, v, layer=self, kind="self", mask=mask)))
        return x + self.dropout(self.mlp(self.norm2(x)))
