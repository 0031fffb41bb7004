"""Attention in the U-Nets of denoising-diffusion-pytorch, and what changes their resolution, over 1 or 2 dimensions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.models.parts.attention import attend, linear_attention, split_heads
from fastdiff.models.parts.blocks import conv_nd
from fastdiff.models.parts.rms import RMSNorm

_MEMORY = 4  # learned keys and values beside the pixels' own


class Attention(nn.Module):
    """Attention among pixels, with a residual: (B, C, ...) -> the same. memory: with learned keys and values, too."""

    def __init__(self, channels: int, heads: int, head_channels: int, *, memory: bool = False) -> None:
        super().__init__()
        inner = heads * head_channels
        self.num_heads = heads
        self.norm = RMSNorm(channels, axis=-1)
        self.memory = nn.Parameter(torch.randn(2, heads, _MEMORY, head_channels)) if memory else None
        self.qkv = nn.Linear(channels, 3 * inner, bias=False)
        self.proj = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projected(x)
        kind = "self" if self.memory is None else "joint"
        return x + to_map(self.proj(attend(q, k, v, layer=self, kind=kind, size=x.shape[2:])), x)

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, heads, S, D), and keys and values with the learned ones before them."""
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        q, k, v = split_heads(self.qkv(tokens), 3, self.num_heads)
        if self.memory is not None:
            k, v = (remembered(more, own) for more, own in zip(self.remembers(self.memory), (k, v)))
        return q, k, v

    def remembers(self, memory: Tensor) -> Tensor:
        """Learned keys and values, (2, heads, M, D)."""
        return memory


class LinearAttention(Attention):
    """As `Attention`, at a cost that is linear in the number of pixels, and with a norm at the end."""

    def __init__(self, channels: int, heads: int, head_channels: int, *, memory: bool = False) -> None:
        super().__init__(channels, heads, head_channels, memory=memory)
        self.scale = head_channels**-0.5
        if self.memory is not None:  # as the original stores them
            self.memory = nn.Parameter(self.memory.detach().transpose(2, 3).contiguous())
        self.norm_out = RMSNorm(channels, axis=-1)

    def forward(self, x: Tensor) -> Tensor:
        y = linear_attention(*self.projected(x), self.scale).transpose(1, 2).flatten(2)
        return x + to_map(self.norm_out(self.proj(y)), x)

    def remembers(self, memory: Tensor) -> Tensor:
        return memory.transpose(2, 3)


class Double(nn.Module):
    """Double the resolution by the nearest neighbour, then a convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, dims: int = 2) -> None:
        super().__init__()
        self.conv = conv_nd(dims, in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def remembered(memory: Tensor, own: Tensor) -> Tensor:
    """Learned keys (heads, M, D) before those of a call (B, heads, S, D)."""
    return torch.cat([memory.to(own.dtype).expand(len(own), *memory.shape), own], dim=2)


def to_map(tokens: Tensor, x: Tensor) -> Tensor:
    """(B, S, C) in the shape of x, (B, C, ...)."""
    return tokens.transpose(1, 2).reshape(x.shape)
