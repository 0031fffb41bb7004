"""Separable filters that change the resolution (Zhang 2019, Section 3.2), as EDM's networks have them: [1, 1] or [1, 3,
3, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.models.parts.blocks import Downsample, Upsample


def filtered_downsample(taps: tuple[float, ...], channels: int) -> nn.Module:
    """Half the resolution by a separable filter, which for [1, 1] is the mean."""
    return Downsample(channels, conv=False) if _is_box(taps) else FilteredDownsample(taps)


def filtered_upsample(taps: tuple[float, ...], channels: int) -> nn.Module:
    """Twice the resolution by a separable filter, which for [1, 1] is the nearest neighbour."""
    return Upsample(channels, conv=False) if _is_box(taps) else FilteredUpsample(taps)


class FilteredDownsample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2) by a separable filter of unit sum (Zhang 2019, Section 3.2)."""

    def __init__(self, taps: tuple[float, ...]) -> None:
        super().__init__()
        self.taps = taps

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        padding = (len(self.taps) - 1) // 2
        return F.conv2d(x, _kernel(self.taps, x), stride=2, padding=padding, groups=x.shape[1])


class FilteredUpsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W): zeros between the pixels, then a separable filter of sum 4."""

    def __init__(self, taps: tuple[float, ...]) -> None:
        super().__init__()
        self.taps = taps

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        padding = (len(self.taps) - 1) // 2
        return F.conv_transpose2d(x, 4 * _kernel(self.taps, x), stride=2, padding=padding, groups=x.shape[1])


class FilteredConv(nn.Module):
    """A 3 x 3 convolution, then the filter at every second pixel: (B, in, H, W) -> (B, out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int, taps: tuple[float, ...]) -> None:
        super().__init__()
        self.taps = taps
        self.conv = nn.Conv2d(in_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        # The bias after the filter, which sees zeros beyond the border and not the bias.
        h = F.conv2d(x, self.conv.weight, padding=1 + (len(self.taps) - 1) // 2)
        bias = self.conv.bias
        return F.conv2d(h, _kernel(self.taps, h), bias, stride=2, groups=h.shape[1])


def _kernel(taps: tuple[float, ...], x: Tensor) -> Tensor:
    """(C, 1, n, n): the outer product of the taps with themselves, of unit sum, for each channel of x."""
    f = x.new_tensor(taps)
    return (torch.outer(f, f) / f.sum().square()).expand(x.shape[1], 1, -1, -1)


def _is_box(taps: tuple[float, ...]) -> bool:
    return len(taps) == 2 and taps[0] == taps[1]
