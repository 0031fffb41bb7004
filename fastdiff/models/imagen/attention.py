"""Attention of Imagen's U-Nets: with normalised queries and keys (Dehghani et al. 2023, Section 2.2), linear (Shen et
al. 2021), and the pool of a text's tokens (Jaegle et al. 2021, Perceiver)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.models.parts.attention import attend, linear_attention, split_heads
from fastdiff.models.parts.blocks import GainNorm

_SCALE = 8.0  # of the products of queries and keys


class QKNorm(nn.Module):
    """Queries and keys divided by their length, times gains: (..., D) twice -> the same. Subclassed by attention."""

    def __init__(self, head_channels: int) -> None:
        super().__init__()
        self.q_scale = nn.Parameter(torch.ones(head_channels))
        self.k_scale = nn.Parameter(torch.ones(head_channels))

    def normalised(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(q, dim=-1) * self.q_scale, F.normalize(k, dim=-1) * self.k_scale


class SelfAttention(QKNorm):
    """Among the pixels, whose keys and values have one head, beside a learned key and those of the conditions:
    (B, S, C), (B, T, context_channels) -> (B, S, C). size: (H, W) of the pixels."""

    def __init__(
        self, channels: int, num_heads: int, head_channels: int, *, context_channels: int | None = None
    ) -> None:
        super().__init__(head_channels)
        self.num_heads = num_heads
        self.norm = GainNorm(channels)
        self.null_kv = nn.Parameter(torch.randn(2, head_channels))
        self.to_q = nn.Linear(channels, num_heads * head_channels, bias=False)
        self.to_kv = nn.Linear(channels, 2 * head_channels, bias=False)
        self.to_context: nn.Module | None = None
        if context_channels is not None:
            self.to_context = nn.Sequential(
                nn.LayerNorm(context_channels), nn.Linear(context_channels, 2 * head_channels)
            )
        self.to_out = nn.Linear(num_heads * head_channels, channels, bias=False)
        self.norm_out = GainNorm(channels)

    def forward(self, x: Tensor, context: Tensor | None = None, size: Sequence[int] = ()) -> Tensor:
        x = self.norm(x)
        (q,) = split_heads(self.to_q(x), 1, self.num_heads)
        pairs = [self.null_kv.to(x.dtype).flatten().expand(len(x), 1, -1), self.to_kv(x)]
        if self.to_context is not None and context is not None:
            pairs.insert(0, self.to_context(context))
        k, v = torch.cat(pairs, dim=1)[:, None].chunk(2, dim=-1)  # (B, 1, T + 1 + S, D)
        q, k = self.normalised(q, k)
        k, v = (heads.expand(-1, self.num_heads, -1, -1) for heads in (k, v))
        kind = "self" if context is None else "joint"
        return self.norm_out(self.to_out(attend(q, k, v, layer=self, kind=kind, size=size, scale=_SCALE)))


class CrossAttention(QKNorm):
    """Of the pixels to the conditions and a learned key: (B, S, C), (B, T, context_channels) -> (B, S, C)."""

    def __init__(self, channels: int, num_heads: int, head_channels: int, *, context_channels: int) -> None:
        super().__init__(head_channels)
        inner = num_heads * head_channels
        self.num_heads = num_heads
        self.norm = GainNorm(channels)
        self.null_kv = nn.Parameter(torch.randn(2, head_channels))
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_kv = nn.Linear(context_channels, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, channels, bias=False)
        self.norm_out = GainNorm(channels)

    def forward(self, x: Tensor, context: Tensor, size: Sequence[int] = ()) -> Tensor:
        (q,), (k, v) = split_heads(self.to_q(self.norm(x)), 1, self.num_heads), self._keys(context)
        return self.norm_out(self.to_out(self._attend(q, k, v, size)))

    def _keys(self, context: Tensor) -> list[Tensor]:
        """Keys and values, the learned ones first: (B, heads, 1 + T, D) each."""
        null = self.null_kv.to(context.dtype)[:, None, None, None].expand(2, len(context), self.num_heads, 1, -1)
        own = split_heads(self.to_kv(context), 2, self.num_heads)
        return [torch.cat(pair, dim=2) for pair in zip(null, own)]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, size: Sequence[int]) -> Tensor:
        q, k = self.normalised(q, k)
        return attend(q, k, v, layer=self, kind="cross", size=size, scale=_SCALE)


class LinearCrossAttention(CrossAttention):
    """`CrossAttention` without maps: queries and keys have softmaxes of their own. The gains are not used."""

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, size: Sequence[int]) -> Tensor:
        return linear_attention(q, k, v, _SCALE).transpose(1, 2).flatten(2)


class LinearAttention(nn.Module):
    """Among the pixels and to the conditions, without maps: (B, C, H, W), (B, T, context_channels) -> (B, C, H, W)."""

    def __init__(self, channels: int, num_heads: int, head_channels: int, *, context_channels: int) -> None:
        super().__init__()
        inner = num_heads * head_channels
        self.heads, self.head_channels = num_heads, head_channels
        self.norm = GainNorm(channels, axis=1)
        self.to_q, self.to_k, self.to_v = (
            nn.Sequential(
                nn.Dropout(0.05),
                nn.Conv2d(channels, inner, 1, bias=False),
                nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False),
            )
            for _ in range(3)
        )
        self.to_context = nn.Sequential(
            nn.LayerNorm(context_channels), nn.Linear(context_channels, 2 * inner, bias=False)
        )
        self.to_out = nn.Conv2d(inner, channels, 1, bias=False)
        self.norm_out = GainNorm(channels, axis=1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.norm(x)
        q, k, v = (
            to(x).flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3) for to in (self.to_q, self.to_k, self.to_v)
        )  # (B, heads, H W, D)
        more = split_heads(self.to_context(context), 2, self.heads)
        k, v = (torch.cat(pair, dim=2) for pair in zip((k, v), more))
        h = linear_attention(q, k, v, self.head_channels**-0.5).transpose(2, 3).reshape(len(x), -1, *x.shape[2:])
        return self.norm_out(self.to_out(F.silu(h)))


class PoolAttention(QKNorm):
    """Of latents to tokens and to themselves: (B, L, C), (B, S, C) -> (B, L, C)."""

    def __init__(self, channels: int, num_heads: int, head_channels: int) -> None:
        super().__init__(head_channels)
        inner = num_heads * head_channels
        self.num_heads = num_heads
        self.norm, self.norm_latents = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_kv = nn.Linear(channels, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, channels, bias=False)
        self.norm_out = nn.LayerNorm(channels)

    def forward(self, latents: Tensor, tokens: Tensor) -> Tensor:
        latents = self.norm_latents(latents)
        (q,) = split_heads(self.to_q(latents), 1, self.num_heads)
        k, v = split_heads(self.to_kv(torch.cat([self.norm(tokens), latents], dim=1)), 2, self.num_heads)
        q, k = self.normalised(q, k)
        return self.norm_out(self.to_out(attend(q, k, v, layer=self, kind="joint", scale=_SCALE)))


class Pool(nn.Module):
    """A text's tokens to a fixed number: (B, S, C), S at most max_length -> (B, means + latents, C).

    latents: learned ones. means: further ones, made of the mean of all tokens.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        head_channels: int,
        *,
        latents: int,
        max_length: int,
        depth: int = 2,
        means: int = 4,
    ) -> None:
        super().__init__()
        self.positions = nn.Embedding(max_length, channels)
        self.latents = nn.Parameter(torch.randn(latents, channels))
        self.norm_mean = GainNorm(channels)
        self.proj_mean = nn.Linear(channels, means * channels)
        self.blocks = nn.ModuleList(
            nn.ModuleList([PoolAttention(channels, num_heads, head_channels), feed_forward(channels, 4)])
            for _ in range(depth)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, channels = tokens.shape
        means = self.proj_mean(self.norm_mean(tokens.mean(1))).reshape(batch, -1, channels)
        latents = torch.cat([means, self.latents.to(tokens.dtype).expand(batch, -1, -1)], dim=1)
        tokens = tokens + self.positions.weight[:length].to(tokens.dtype)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleList)
            attention, ff = block
            latents = latents + attention(latents, tokens)
            latents = latents + ff(latents)
        return latents


def feed_forward(channels: int, mult: float) -> nn.Sequential:
    """Of each token: (B, S, C) -> the same."""
    hidden = int(channels * mult)
    return nn.Sequential(
        GainNorm(channels),
        nn.Linear(channels, hidden, bias=False),
        nn.GELU(),
        GainNorm(hidden),
        nn.Linear(hidden, channels, bias=False),
    )
