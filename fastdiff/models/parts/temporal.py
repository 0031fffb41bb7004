"""Layers over the frames of a video. Frames are samples of a batch, (B F, C, H, W), between these layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdiff.models.parts.attention import Context, attend, split_heads
from fastdiff.models.parts.blocks import GroupNorm, Norm, zero_init
from fastdiff.models.parts.positions import buckets, rotate
from fastdiff.models.parts.transformer import TransformerBlock


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


class RelativePositionBias(nn.Module):
    """A learned bias for each distance between frames, in buckets that widen with it: n frames -> (1, heads, n, n).

    Raffel et al. 2020, T5, Section 2.1. count: of the buckets, half of which are for later frames.
    """

    def __init__(self, num_heads: int, *, count: int = 32, max_distance: int = 32) -> None:
        super().__init__()
        self.count, self.max_distance = count, max_distance
        self.table = nn.Embedding(count, num_heads)

    def forward(self, frames: int) -> Tensor:
        position = torch.arange(frames, device=self.table.weight.device)
        ahead = position[None] - position[:, None]  # of the query's frame, the key's
        half = self.count // 2
        bucket = buckets(ahead.abs(), half, self.max_distance) + half * (ahead > 0)
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


class FrameBlock(TransformerBlock):
    """`TransformerBlock` without a context, on tokens (N, F, C) that are frames.

    positions: how many frames have fixed positions, added before each attention; 0 for none.
    """

    positions: Tensor | None

    def __init__(self, channels: int, num_heads: int, head_channels: int, *, positions: int = 0) -> None:
        super().__init__(channels, num_heads, head_channels, context_channels=None)
        self.register_buffer("positions", sincos_frames(channels, positions)[None] if positions else None)

    def forward(self, x: Tensor, context: Context | None = None, size: Sequence[int] = ()) -> Tensor:
        at: Tensor | float = 0.0 if self.positions is None else self.positions[:, : x.shape[1]]
        x = x + self.attn1(self.norm1(x) + at)
        x = x + self.attn2(self.norm2(x) + at)
        return x + self.ff(self.norm3(x))


def sincos_frames(channels: int, frames: int) -> Tensor:
    """(frames, channels) in float32: sines and cosines in turn (Vaswani et al. 2017, Section 3.5)."""
    steps = torch.arange(0, channels, 2, device="cpu")
    angles = torch.arange(frames, device="cpu")[:, None] * torch.exp(steps * (-math.log(10_000.0) / channels))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :channels]


class FrameTransformer(nn.Module):
    """`depth` blocks on each pixel's way through the frames, with a residual: (B F, C, H, W) -> the same.

    The norm's statistics are of a whole video. positions: of `FrameBlock`; 0, or the greatest number of frames.
    """

    def __init__(
        self, channels: int, num_heads: int, head_channels: int, *, depth: int, norm: Norm, positions: int = 0
    ) -> None:
        super().__init__()
        inner = num_heads * head_channels
        self.norm = norm(channels)
        self.proj_in = nn.Linear(channels, inner)
        self.blocks = nn.ModuleList(
            FrameBlock(inner, num_heads, head_channels, positions=positions) for _ in range(depth)
        )
        self.proj_out = zero_init(nn.Linear(inner, channels))

    def forward(self, h: Tensor, frames: int) -> Tensor:
        tokens = self.proj_in(to_sequences(to_frames(self.norm(to_video(h, frames))), frames))
        for block in self.blocks:
            tokens = block(tokens)
        return h + from_sequences(self.proj_out(tokens), *h.shape[2:])


class FrameConvolutions(nn.Module):
    """Norm, SiLU and a convolution over three frames, four times, with a residual: (B F, C, H, W) -> the same."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(GroupNorm(groups, channels) for _ in range(4))
        self.convs = nn.ModuleList(nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)) for _ in range(4))
        self.dropout = nn.Dropout(0.1)
        zero_init(self.convs[-1])

    def forward(self, h: Tensor, frames: int) -> Tensor:
        y = to_video(h, frames)
        for index, (norm, conv) in enumerate(zip(self.norms, self.convs)):
            y = norm(y, activation="silu")
            y = conv(y if index == 0 else self.dropout(y))
        return h + to_frames(y)


class SpaceTime(nn.Module):
    """A layer for each frame, then one over the frames; either may be None: (B F, C, H, W) -> (B F, C', H, W).

    run: calls the first with what a layer of its kind takes.
    """

    def __init__(self, space: nn.Module | None, time: nn.Module | None) -> None:
        super().__init__()
        self.space, self.time = space, time

    def forward(self, h: Tensor, frames: int, run: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        if self.space is not None:
            h = run(self.space, h)
        return h if self.time is None else self.time(h, frames)
