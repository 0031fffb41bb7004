"""Blocks that the reference models share, in plain PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(t: Tensor, dim: int, *, max_period: float = 10_000.0, shift: float = 0.0) -> Tensor:
    """Sinusoidal embedding [cos, sin] of the time (Vaswani et al. 2017, Section 3.5; Ho et al. 2020, Appendix B).

    t: (B,) times in the units of training, fractional ones included. shift: 1 for frequencies that end at 1 /
    max_period, 0 (the later habit) for those that end one before. Returns (B, dim) in t's dtype, dim even.
    """
    half = dim // 2
    steps = torch.arange(half, device=t.device, dtype=t.dtype)
    angles = t[:, None] * torch.exp(-math.log(max_period) * steps / (half - shift))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def zero_init(layer: nn.Module) -> nn.Module:
    """Zero a layer's parameters, so that its residual branch starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResBlock(nn.Module):
    """Residual block with adaptive group norm (Dhariwal & Nichol 2021, ADM, Section 3.1).

    (B, in_channels, H, W) and an embedding (B, embedding_channels) -> (B, out_channels, H, W).
    """

    def __init__(
        self, in_channels: int, out_channels: int, embedding_channels: int, *, groups: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale_shift = nn.Linear(embedding_channels, 2 * out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.scale_shift(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm2(h) * (1 + scale) + shift)
        return self.skip(x) + self.conv2(self.dropout(h))


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of a feature map, with a residual: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, head_channels: int, groups: int) -> None:
        super().__init__()
        self.num_heads = channels // head_channels
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.num_heads, channels // self.num_heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each (B, heads, H W, head_channels)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(h.transpose(-1, -2).reshape(batch, channels, height, width))


class PositionEmbedding(nn.Module):
    """Add a learned value to each channel and position: (B, C, size, size) -> (B, C, size, size).

    A convolution sees where it is only by the zeros beyond the border. The learned form is that of Dosovitskiy et al.
    2021, ViT, Section 3.1.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, channels, size, size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class Downsample(nn.Module):
    """Halve the resolution by a strided convolution: (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Double the resolution, nearest neighbour then a convolution: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
