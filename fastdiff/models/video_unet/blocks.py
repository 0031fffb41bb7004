"""Blocks of the U-Net for videos; all take frames as samples, (B F, C, H, W)."""

from __future__ import annotations

from torch import Tensor, nn

from fastdiff.models.parts.attention import linear_attention
from fastdiff.models.parts.temporal import Clip, FrameAttention, from_sequences, to_sequences

_SPATIAL_HEAD = 32  # channels of a head of the attention among pixels, whatever attn_dim_head is


class LinearAttention(nn.Module):
    """Attention among pixels whose cost is linear in their number, with a residual: (B F, C, H, W) -> the same."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels, bias=False)
        self.qkv = nn.Linear(channels, 3 * heads * _SPATIAL_HEAD, bias=False)
        self.proj = nn.Linear(heads * _SPATIAL_HEAD, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.flatten(2).transpose(1, 2))  # (B F, S, C)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B F, heads, S, D) each
        y = linear_attention(q, k, v, _SPATIAL_HEAD**-0.5)
        return x + self.proj(y.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)


class Spatial(nn.Module):
    """Attention among the pixels of a frame, with a residual: (B F, C, H, W) -> the same."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, bias=False)
        self.attention = FrameAttention(channels, heads, _SPATIAL_HEAD)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(self.norm(x.flatten(2).transpose(1, 2)), size=tuple(x.shape[2:]))
        return x + y.transpose(1, 2).reshape(x.shape)


class Temporal(nn.Module):
    """Attention of each pixel among the frames, with a residual: (B F, C, H, W) -> the same."""

    def __init__(self, channels: int, heads: int, head_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, bias=False)
        self.attention = FrameAttention(channels, heads, head_channels)

    def forward(self, x: Tensor, clip: Clip) -> Tensor:
        return x + from_sequences(self.attention(self.norm(to_sequences(x, clip.frames)), clip), *x.shape[2:])
