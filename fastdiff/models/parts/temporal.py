"""Layers over the frames of a video. Frames are samples of a batch, (B F, C, H, W), between these layers."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdiff.models.parts.attention import attend, split_heads


def to_frames(x: Tensor) -> Tensor:
    """A video's frames as samples: (B, C, F, H, W) -> (B F, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def to_video(h: Tensor, frames: int) -> Tensor:
    """And back: (B F, C, H, W) -> (B, C, F, H, W)."""
    return h.unflatten(0, (-1, frames)).transpose(1, 2)


def per_frame(x: Tensor, frames: int) -> Tensor:
    """What a video's frames share, once for each: (B, ...) -> (B F, ...)."""
    return x if frames == 1 else x.repeat_interleave(frames, dim=0)


def to_sequences(h: Tensor, frames: int) -> Tensor:
    """Each pixel's way through the frames, as tokens: (B F, C, H, W) -> (B H W, F, C)."""
    return h.unflatten(0, (-1, frames)).permute(0, 3, 4, 1, 2).flatten(0, 2)


def from_sequences(tokens: Tensor, height: int, width: int) -> Tensor:
    """And back: (B H W, F, C) -> (B F, C, H, W)."""
    return tokens.unflatten(0, (-1, height, width)).permute(0, 3, 4, 1, 2).flatten(0, 1)


class Clip(NamedTuple):
    """What the attention over frames knows of a call.

    frames: their number. bias: added to the scores, (1, heads, F, F). angles: of the rotations of queries and keys,
    (F, rotated / 2). focus: (B,) boolean, True for a sample whose frames see themselves alone; None for none.
    """

    frames: int
    bias: Tensor | None = None
    angles: Tensor | None = None
    focus: Tensor | None = None


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions: channels (2 i, 2 i + 1) of x (..., F, D) turned by angles (F, n), the first 2 n of D.

    Su et al. 2021, RoFormer, Eq. 34.
    """
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    turned, kept = x[..., : 2 * angles.shape[1]], x[..., 2 * angles.shape[1] :]
    even, odd = turned.unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return torch.cat([pairs.flatten(-2), kept], dim=-1)


class RelativePositionBias(nn.Module):
    """A learned bias for each distance between frames, in buckets that widen with it: n frames -> (1, heads, n, n).

    Raffel et al. 2020, T5, Section 2.1. Half of the buckets are for later frames; of each half, the first half is for
    one distance each, the rest for distances up to max_distance, on a logarithmic scale.
    """

    def __init__(self, num_heads: int, *, buckets: int = 32, max_distance: int = 32) -> None:
        super().__init__()
        self.buckets, self.max_distance = buckets, max_distance
        self.table = nn.Embedding(buckets, num_heads)

    def forward(self, frames: int) -> Tensor:
        position = torch.arange(frames, device=self.table.weight.device)
        ahead = position[None] - position[:, None]  # of the query's frame, the key's
        half = self.buckets // 2
        exact = half // 2
        distance = ahead.abs()
        share = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        wide = (exact + (share * (half - exact)).long()).clamp(max=half - 1)
        bucket = torch.where(distance < exact, distance, wide) + half * (ahead > 0)
        return self.table(bucket).permute(2, 0, 1)[None]


class FrameAttention(nn.Module):
    """Attention among tokens (B, S, C) -> (B, S, C), without biases; for the frames of a clip, if it is given one."""

    def __init__(self, channels: int, num_heads: int, head_channels: int) -> None:
        super().__init__()
        inner = num_heads * head_channels
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * inner, bias=False)
        self.proj = nn.Linear(inner, channels, bias=False)

    def forward(self, tokens: Tensor, clip: Clip | None = None, size: tuple[int, ...] = ()) -> Tensor:
        q, k, v = split_heads(self.qkv(tokens), 3, self.num_heads)
        if clip is None:
            return self.proj(attend(q, k, v, layer=self, kind="self", size=size))
        if clip.angles is not None:
            q, k = rotate(q, clip.angles), rotate(k, clip.angles)
        bias = None if clip.bias is None else clip.bias.to(q.dtype)
        y = attend(q, k, v, layer=self, kind="self", mask=bias)
        if clip.focus is not None:  # a softmax over one frame is 1
            focused = clip.focus.repeat_interleave(len(y) // len(clip.focus))[:, None, None]
            y = torch.where(focused, v.transpose(1, 2).flatten(2), y)
        return self.proj(y)
