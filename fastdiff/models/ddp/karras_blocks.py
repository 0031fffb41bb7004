"""Magnitude-preserving layers of EDM2 (Karras et al. 2024). Equations and sections are of that paper."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.models.ddp.blocks import remembered, to_map
from fastdiff.models.parts.attention import attend, split_heads

_EPS = 1e-4  # of norms, Section B.6


class MPConv(nn.Module):
    """A convolution, or a linear layer where there is no kernel, whose weight rows have length 1 (Equation 47).

    with_ones: of x and a channel of ones, in place of a bias (Section B.3); it does not count among the inputs.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int | None = None, *, with_ones: bool = False
    ) -> None:
        super().__init__()
        taps = () if kernel is None else (kernel, kernel)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels + with_ones, *taps))
        self.with_ones = with_ones
        self.inputs = in_channels * (1 if kernel is None else kernel**2)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.weight.copy_(unit_rows(self.weight))
        weight = (unit_rows(self.weight) / math.sqrt(self.inputs)).to(x.dtype)
        if weight.ndim == 2:
            return F.linear(x, weight)
        if self.with_ones:
            x = F.pad(x, (0, 0, 0, 0, 1, 0), value=1.0)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Attention(nn.Module):
    """Attention among pixels with normalised queries, keys and values, and learned ones beside them: (B, C, H, W) ->
    the same. Section B.5."""

    def __init__(self, channels: int, head_channels: int, share: float) -> None:
        super().__init__()
        self.num_heads, self.share = max(math.ceil(channels / head_channels), 2), share
        inner = self.num_heads * head_channels
        self.memory = nn.Parameter(torch.randn(2, self.num_heads, 4, head_channels))
        self.qkv = MPConv(channels, 3 * inner)
        self.proj = MPConv(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split_heads(self.qkv(x.flatten(2).transpose(1, 2)), 3, self.num_heads)
        k, v = (remembered(more, own) for more, own in zip(self.memory, (k, v)))
        q, k, v = (pixel_norm(tokens, dim=-1) for tokens in (q, k, v))
        y = self.proj(attend(q, k, v, layer=self, kind="joint", size=x.shape[2:]))
        return mp_add(to_map(y, x), x, self.share)


class Block(nn.Module):
    """A residual block of Figure 21: (B, in, H, W), embedding (B, E) -> (B, out, H, W).

    encodes: of the way down: a norm comes first. resample: "halve" before that, with a convolution; "double" first of
    all, for a block that takes no skip.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        attention: Attention | None,
        dropout: float,
        *,
        encodes: bool = False,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.encodes, self.resample = encodes, resample
        changes = resample == "halve" or in_channels != out_channels
        self.skip = MPConv(in_channels, out_channels, 1) if changes else nn.Identity()
        self.scale, self.gain = MPConv(embedding, out_channels), nn.Parameter(torch.zeros(()))
        self.conv1 = MPConv(out_channels if encodes else in_channels, out_channels, 3)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = MPConv(out_channels, out_channels, 3)
        self.attention = nn.Identity() if attention is None else attention

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if self.resample is not None:
            size = [2 * side if self.resample == "double" else side // 2 for side in x.shape[2:]]
            x = F.interpolate(x, size, mode="bilinear")
        skip = self.skip(x)
        if self.encodes:
            x = skip = pixel_norm(skip, dim=1)
        h = self.conv1(mp_silu(x)) * (self.scale(embedding) * self.gain + 1)[:, :, None, None]
        h = self.conv2(self.dropout(mp_silu(h)))
        return self.attention(mp_add(h, skip, 0.3))


def unit_rows(weight: Tensor) -> Tensor:
    """A weight whose rows have the root mean square 1 (Equation 66)."""
    rows = F.normalize(weight.flatten(1), dim=1, eps=_EPS)
    return (rows * math.sqrt(rows.shape[1])).reshape(weight.shape)


def pixel_norm(x: Tensor, *, dim: int) -> Tensor:
    """x with the root mean square 1 along dim (Equation 30)."""
    return F.normalize(x, dim=dim, eps=_EPS) * math.sqrt(x.shape[dim])


def mp_silu(x: Tensor) -> Tensor:
    """SiLU that keeps the magnitude of normal numbers (Equation 81)."""
    return F.silu(x) / 0.596


def mp_add(a: Tensor, b: Tensor, t: float) -> Tensor:
    """A sum with share t of b that keeps the magnitude (Equation 88)."""
    return (a * (1 - t) + b * t) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Channels side by side, with share t of b in the magnitude (Equation 103)."""
    first, second = a.shape[1], b.shape[1]
    whole = math.sqrt((first + second) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * ((1 - t) / math.sqrt(first) * whole), b * (t / math.sqrt(second) * whole)], dim=1)
