"""The residual blocks of Imagen's U-Nets, and what changes their resolution. Features are (B, C, H, W)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.models.imagen.attention import CrossAttention, LinearCrossAttention
from fastdiff.models.parts.blocks import Conditioned, GainNorm


class RMSNorm(nn.Module):
    """Each pixel's channels divided by their root mean square (Zhang & Sennrich 2019), times a gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * (self.gain * x.shape[1] ** 0.5)


class GlobalContext(nn.Module):
    """A gate for each channel, from a weighted mean of the pixels (Cao et al. 2019, Figure 4): (B, C, 1, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(3, channels // 2)
        self.to_k = nn.Conv2d(channels, 1, 1)
        self.net = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = self.to_k(x).flatten(2).softmax(-1)  # (B, 1, H W)
        mean = x.flatten(2) @ weights.transpose(1, 2)
        return self.net(mean[..., None])


class ResidualBlock(Conditioned):
    """norm, SiLU, convolution, twice; between them attention to the conditions, if cross says so ("full", "linear").

    time_channels: of the embedding, after its SiLU, that scales and shifts the second norm. gated: by `GlobalContext`.
    num_heads, head_channels: of the attention.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        time_channels: int,
        context_channels: int = 0,
        cross: str | None = None,
        gated: bool = False,
        num_heads: int = 8,
        head_channels: int = 64,
    ) -> None:
        super().__init__()
        self.norm1 = RMSNorm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.cross: nn.Module | None = None
        if cross is not None:
            kind = CrossAttention if cross == "full" else LinearCrossAttention
            self.cross = kind(out_channels, num_heads, head_channels, context_channels=context_channels)
        self.scale_shift = nn.Linear(time_channels, 2 * out_channels)
        self.norm2 = RMSNorm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.gate = GlobalContext(out_channels) if gated else None
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(
        self, x: Tensor, embedding: Tensor | None = None, context: Tensor | None = None, size: torch.Size | None = None
    ) -> Tensor:
        assert embedding is not None  # every call of the U-Net makes one
        h = self.conv1(F.silu(self.norm1(x)))
        if self.cross is not None:
            tokens = h.flatten(2).transpose(1, 2)
            tokens = tokens + self.cross(tokens, context, h.shape[2:])
            h = tokens.transpose(1, 2).reshape(h.shape)
        scale, shift = self.scale_shift(embedding)[..., None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (scale + 1) + shift))
        if self.gate is not None:
            h = h * self.gate(h)
        return h + self.skip(x)


class CrossEmbed(nn.Module):
    """Convolutions of several sizes side by side (Wang et al. 2021, CrossFormer, Section 3.1): the smallest kernel
    makes half of the channels, the next a quarter, and so on; the last makes the rest."""

    def __init__(self, in_channels: int, out_channels: int, kernels: Sequence[int]) -> None:
        super().__init__()
        widths = [out_channels // 2**index for index in range(1, len(kernels))]
        widths.append(out_channels - sum(widths))
        self.convs = nn.ModuleList(
            nn.Conv2d(in_channels, width, kernel, padding=(kernel - 1) // 2)
            for width, kernel in zip(widths, sorted(kernels))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x) for conv in self.convs], dim=1)


class PixelShuffle(nn.Module):
    """Double the resolution: each pixel's channels become four pixels (Shi et al. 2016, Section 3.2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(F.silu(self.conv(x)), 2)


class Nearest(nn.Module):
    """Double the resolution by the nearest neighbour, then a convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Parallel(nn.Module):
    """The sum of a 3 x 3 and a 1 x 1 convolution, which end the way down of a base model."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(x) + self.conv1(x)


class Combine(nn.Module):
    """Features with those of all levels beside them: each one's norm, SiLU and convolution, at the features' size."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(RMSNorm(channels) for channels in in_channels)
        self.convs = nn.ModuleList(nn.Conv2d(channels, out_channels, 3, padding=1) for channels in in_channels)

    def forward(self, x: Tensor, maps: Sequence[Tensor]) -> Tensor:
        resized = [resize(features, x) for features in maps]
        return torch.cat([x, *(conv(F.silu(norm(h))) for norm, conv, h in zip(self.norms, self.convs, resized))], dim=1)


def resize(image: Tensor, x: Tensor, mode: str = "nearest") -> Tensor:
    """The image at x's resolution."""
    return image if image.shape[2:] == x.shape[2:] else F.interpolate(image, x.shape[2:], mode=mode)


def channel_feed_forward(channels: int, mult: float) -> nn.Sequential:
    """Of each pixel: (B, C, H, W) -> the same."""
    hidden = int(channels * mult)
    return nn.Sequential(
        GainNorm(channels, axis=1),
        nn.Conv2d(channels, hidden, 1, bias=False),
        nn.GELU(),
        GainNorm(hidden, axis=1),
        nn.Conv2d(hidden, channels, 1, bias=False),
    )
