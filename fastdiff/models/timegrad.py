"""TimeGrad's noise-prediction network (Rasul et al. 2021, Autoregressive Denoising Diffusion Models for Multivariate
Probabilistic Time Series Forecasting, Figure 2), in the form of pytorch-ts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect

_STEPS = 500  # rows of the original's table of embeddings


@dataclass(frozen=True)
class TimeGradConfig:
    """The arguments of `EpsilonTheta`.

    target_dim: series, whose values at one moment are the sample. cond_length: of the condition, the state of the
    network that has read the past. time_emb_dim: frequencies of the step's embedding. residual_hidden: its channels.
    dilation_cycle_length: the dilation doubles from layer to layer and starts again after so many.
    """

    target_dim: int
    cond_length: int
    time_emb_dim: int = 16
    residual_layers: int = 8
    residual_channels: int = 8
    dilation_cycle_length: int = 2
    residual_hidden: int = 64

    def __post_init__(self) -> None:
        expect(self.target_dim >= 2, f"target_dim must be 2 or more, got {self.target_dim}")
        expect(
            self.dilation_cycle_length >= 1, f"dilation_cycle_length must be positive, got {self.dilation_cycle_length}"
        )
        widest = 2 ** (min(self.dilation_cycle_length, self.residual_layers) - 1)
        expect(
            widest <= self.target_dim + 4, f"a dilation of {widest} is wider than target_dim + 4, {self.target_dim + 4}"
        )


class TimeGrad(nn.Module):
    """Noise-prediction network: `model(x, t, cond)` -> (B, 1, target_dim).

    x: (B, 1, target_dim), the noisy values. t: (B,) steps 0 to 499 of the training schedule; ones between are rounded
    down. cond: (B, 1, cond_length) or (B, cond_length). Raises ValueError where these do not fit.

    Neighbouring series are neighbours in the convolutions, which are circular: those of kernel 1 make the row 4 longer
    by its own ends, and the last two make it as much shorter, as in the original.
    """

    def __init__(self, config: TimeGradConfig) -> None:
        super().__init__()
        self.config = config
        channels, hidden, half = config.residual_channels, config.residual_hidden, config.target_dim // 2
        self.proj_in = lengthening(channels)
        self.time_embedding = nn.ModuleList([nn.Linear(2 * config.time_emb_dim, hidden), nn.Linear(hidden, hidden)])
        self.cond_embedding = nn.ModuleList([nn.Linear(config.cond_length, half), nn.Linear(half, config.target_dim)])
        self.blocks = nn.ModuleList(
            ResidualBlock(hidden, channels, 2 ** (index % config.dilation_cycle_length))
            for index in range(config.residual_layers)
        )
        self.proj_skips = nn.Conv1d(channels, channels, 3)
        self.proj_out = nn.Conv1d(channels, 1, 3)
        nn.init.kaiming_normal_(self.proj_in.weight)
        nn.init.kaiming_normal_(self.proj_skips.weight)
        nn.init.zeros_(self.proj_out.weight)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self._check(x, t, cond)
        h = F.leaky_relu(self.proj_in(x), 0.4)
        embedding = step_embedding(t, self.config.time_emb_dim).to(x.dtype)
        for layer in self.time_embedding:
            embedding = F.silu(layer(embedding))
        condition = cond.reshape(len(x), 1, -1)
        for layer in self.cond_embedding:
            condition = F.leaky_relu(layer(condition), 0.4)
        total = torch.zeros_like(h)
        for block in self.blocks:
            h, skip = block(h, condition, embedding)
            total = total + skip
        h = F.leaky_relu(self.proj_skips(total / math.sqrt(len(self.blocks))), 0.4)
        return self.proj_out(h)

    def _check(self, x: Tensor, t: Tensor, cond: Tensor) -> None:
        batch, config = len(x), self.config
        expect(
            tuple(x.shape[1:]) == (1, config.target_dim), f"x must be (B, 1, {config.target_dim}), got {tuple(x.shape)}"
        )
        expect(t.shape == (batch,), f"t must be ({batch},), one step a sample, got {tuple(t.shape)}")
        fits = tuple(cond.shape) in ((batch, config.cond_length), (batch, 1, config.cond_length))
        expect(fits, f"cond must be ({batch}, 1, {config.cond_length}), got {tuple(cond.shape)}")


class ResidualBlock(nn.Module):
    """A gated, dilated convolution (van den Oord et al. 2016, WaveNet, Eq. 2): (B, C, L) -> the same, and a skip.

    condition: (B, 1, L - 4). embedding: (B, hidden), of the step.
    """

    def __init__(self, hidden: int, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, 2 * channels, 3, padding=dilation, dilation=dilation, padding_mode="circular")
        self.shift = nn.Linear(hidden, channels)
        self.condition = lengthening(2 * channels)
        self.proj = nn.Conv1d(channels, 2 * channels, 1)
        nn.init.kaiming_normal_(self.condition.weight)
        nn.init.kaiming_normal_(self.proj.weight)

    def forward(self, x: Tensor, condition: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        gate, value = (self.conv(x + self.shift(embedding)[..., None]) + self.condition(condition)).chunk(2, dim=1)
        y = F.leaky_relu(self.proj(gate.sigmoid() * value.tanh()), 0.4)
        residual, skip = y.chunk(2, dim=1)
        return (x + residual) / math.sqrt(2), skip


def lengthening(channels: int) -> nn.Conv1d:
    """Each value to `channels`, the row with two values of its other end at each end: (B, 1, L) -> (B, C, L + 4)."""
    return nn.Conv1d(1, channels, 1, padding=2, padding_mode="circular")


def step_embedding(t: Tensor, dim: int) -> Tensor:
    """[sin, cos] of a step times 10^(4 k / dim), k < dim: (B,) -> (B, 2 dim) in float32.

    In float32 in any case, and in this order: at step 499 the angles reach 10^6, whose rounding the trained weights
    have seen.
    """
    step = t.floor().clamp(0, _STEPS - 1).long()[:, None]
    table = step * 10.0 ** (torch.arange(dim, device=t.device)[None] * 4.0 / dim)
    return torch.cat([table.sin(), table.cos()], dim=1)
