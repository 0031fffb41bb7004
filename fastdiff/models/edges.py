"""Edges of pictures, as ControlNets for edges take them (Canny 1986, A Computational Approach to Edge Detection)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.arguments import described, number
from fastdiff.errors import expect


def canny(pictures: Tensor, *, sigma: float = 1.0, low: float = 0.05, high: float = 0.15) -> Tensor:
    """Lines of one pixel where colours change: (B, C, H, W) in [-1, 1] -> (B, 1, H, W), 1 on an edge and 0 elsewhere.

    sigma: of the Gaussian blur, in pixels. low, high: lines are begun where the gradient's length exceeds `high` and
    followed while it exceeds `low` (Section IX, hysteresis); a step from black to white has about 0.7 after the blur.
    Of several channels the one with the greatest gradient counts. In the dtype and on the device of the pictures.
    Raises ValueError for another shape or thresholds out of order.
    """
    if not isinstance(pictures, Tensor):
        raise TypeError(f"pictures must be a tensor (B, C, H, W) in [-1, 1], got {described(pictures)}")
    expect(
        pictures.ndim == 4 and pictures.shape[1] > 0 and min(pictures.shape[2:]) > 0,
        f"pictures must be (B, C, H, W), got {tuple(pictures.shape)}",
    )
    sigma, low, high = number("sigma", sigma), number("low", low), number("high", high)
    expect(sigma > 0, f"sigma must be positive, got {sigma:g}")
    expect(0 < low <= high, f"low and high must be 0 < low <= high, got {low:g} and {high:g}")
    x = pictures.to(torch.promote_types(pictures.dtype, torch.float32))
    length, down, right = _gradient(_blurred(x.add(1).div(2), sigma))
    weak = _thinned(length, down, right) & (length > low)
    strong = weak & (length > high)
    while True:
        grown = (F.max_pool2d(strong.float(), 3, stride=1, padding=1) > 0) & weak
        if torch.equal(grown, strong):
            return strong.to(pictures.dtype)
        strong = grown


def _blurred(x: Tensor, sigma: float) -> Tensor:
    radius = max(1, round(3 * sigma))
    steps = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    weights = torch.exp(-0.5 * (steps / sigma).square())
    weights = weights / weights.sum()
    x = F.pad(x, (radius,) * 4, mode="replicate")
    return x.unfold(2, len(weights), 1).matmul(weights).unfold(3, len(weights), 1).matmul(weights)


def _gradient(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sobel's: its length and its parts downwards and to the right, (B, 1, H, W) each, of the channel where the length
    is greatest. A step of height 1 has length 1."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    down, right = x[:, :, 2:] - x[:, :, :-2], x[..., 2:] - x[..., :-2]
    down = (down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]) / 4
    right = (right[:, :, :-2] + 2 * right[:, :, 1:-1] + right[:, :, 2:]) / 4
    length, best = torch.hypot(down, right).max(1, keepdim=True)
    return length, down.gather(1, best), right.gather(1, best)


def _thinned(length: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Where the length is greatest along the gradient, of the four directions the nearest."""
    angle = torch.atan2(down, right) % torch.pi
    sector = (angle * 4 / torch.pi).round().long() % 4
    height, width = length.shape[2:]
    padded = F.pad(length, (1, 1, 1, 1))

    def moved(dy: int, dx: int) -> Tensor:
        return padded[:, :, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    greatest = torch.zeros_like(length, dtype=torch.bool)
    for number_of, (dy, dx) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        here = (length > moved(dy, dx)) & (length >= moved(-dy, -dx))  # of two that are equal, one
        greatest |= (sector == number_of) & here
    return greatest
