"""Blocks of the U-Net for videos; all take frames as samples, (B F, C, H, W)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.models.parts.temporal import Clip, FrameAttention, from_sequences, to_sequences

_SPATIAL_HEAD = 32  # channels of a head of the attention among pixels, whatever attn_dim_head is


class RMSNorm(nn.Module):
    """Each pixel divided by the RMS of its channels, then scaled and shifted, then SiLU: (B, C, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        y = F.normalize(x, dim=1) * (math.sqrt(x.shape[1]) * self.weight)[:, None, None]
        if scale is not None and shift is not None:
            y = y * (scale + 1) + shift
        return F.silu(y)


class ResBlock(nn.Module):
    """Convolution, norm, SiLU, twice, with the embedding after the first norm: (B F, C, H, W) -> (B F, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int | None) -> None:
        super().__init__()
        self.scale_shift = None if embedding is None else nn.Linear(embedding, 2 * out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = RMSNorm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = RMSNorm(out_channels)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        scale = shift = None
        if self.scale_shift is not None:
            scale, shift = self.scale_shift(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm1(self.conv1(x), scale, shift)
        return self.norm2(self.conv2(h)) + self.skip(x)


class LinearAttention(nn.Module):
    """Attention among pixels whose cost is linear in their number, with a residual: (B F, C, H, W) -> the same.

    Shen et al. 2021, Efficient Attention, Section 3.2: softmax of q over channels, of k over pixels.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels, bias=False)
        self.qkv = nn.Linear(channels, 3 * heads * _SPATIAL_HEAD, bias=False)
        self.proj = nn.Linear(heads * _SPATIAL_HEAD, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.flatten(2).transpose(1, 2))  # (B F, S, C)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B F, heads, S, D) each
        summary = k.softmax(dim=-2).transpose(-2, -1) @ v  # (B F, heads, D, D)
        y = (_SPATIAL_HEAD**-0.5 * q.softmax(dim=-1)) @ summary
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
