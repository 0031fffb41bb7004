"""A U-Net over the steps of a plan (Janner et al. 2022, Planning with Diffusion, Appendix C), with returns as a
condition (Ajay et al. 2023, Is Conditional Generative Modeling all you need for Decision-Making?), in the form of
decision-diffuser's `TemporalUnet`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.parts.backbone import take
from fastdiff.models.parts.blocks import GroupNorm, embedding_dtype, rate_embedding
from fastdiff.models.parts.control import Control
from fastdiff.models.parts.reuse import Reuse
from fastdiff.runtime.eager import leave_untraced

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TemporalUnetConfig:
    """The arguments of `TemporalUnet`.

    horizon, cond_dim: have no effect on the network. transition_dim: numbers of one step of a plan. dim: channels,
    times dim_mults at each level. returns_condition: whether a return is a condition; condition_dropout: how often it
    is left out in training. calc_energy: SiLU for Mish, and the result is the gradient of an energy.
    """

    horizon: int
    transition_dim: int
    cond_dim: int
    dim: int = 128
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    returns_condition: bool = False
    condition_dropout: float = 0.1
    calc_energy: bool = False
    kernel_size: int = 5

    def __post_init__(self) -> None:
        expect(self.dim % 2 == 0 and self.dim > 2, f"dim must be even and more than 2, got {self.dim}")
        expect(all(self.dim * mult % 8 == 0 for mult in self.dim_mults), "dim times dim_mults must be divisible by 8")
        expect(self.kernel_size % 2 == 1, f"kernel_size must be odd, got {self.kernel_size}")
        expect(self.dim_mults[:1] == (1,), f"dim_mults must begin with 1, got {self.dim_mults}")


class TemporalUnet(nn.Module):
    """`model(x, t, returns=returns)` -> (B, H, transition_dim).

    x: (B, H, transition_dim), H divisible by 2 ** (len(dim_mults) - 1). t: (B,) training times, fractional ones
    included. returns: (B, 1), for a network with returns_condition. keep: (B,) boolean, False for samples whose return
    is left out, as `dropped` draws in training; `returns=None` leaves out all. The original draws at each call that
    does not forbid it, this network does not. control: added to the skips and to the middle. reuse: see
    `fastdiff.caching`. Raises ValueError where these do not fit.

    With calc_energy the result is the gradient in x of the mean over all numbers, the batch's included as in the
    original, of (network - x)^2. It is computed also under no_grad, and can be differentiated where gradients are on.
    """

    def __init__(self, config: TemporalUnetConfig) -> None:
        super().__init__()
        self.config = config
        self._leave_untraced()
        dim, kernel = config.dim, config.kernel_size
        self.activation: Activation = F.silu if config.calc_energy else F.mish
        widths = [config.transition_dim, *(dim * mult for mult in config.dim_mults)]
        embedding = dim * (1 + config.returns_condition)
        act = nn.SiLU if config.calc_energy else nn.Mish
        self.time_embedding = nn.Sequential(nn.Linear(dim, 4 * dim), act(), nn.Linear(4 * dim, dim))
        self.return_embedding = None
        if config.returns_condition:
            layers = [nn.Linear(1, dim), act(), nn.Linear(dim, 4 * dim), act(), nn.Linear(4 * dim, dim)]
            self.return_embedding = nn.Sequential(*layers)

        def level(in_channels: int, out_channels: int, resample: nn.Module) -> Level:
            first, second = (
                ResidualBlock(channels, out_channels, embedding, kernel, self.activation)
                for channels in (in_channels, out_channels)
            )
            return Level(first, second, resample)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for index, (narrow, wide) in enumerate(pairwise(widths), start=1):
            halve = nn.Conv1d(wide, wide, 3, stride=2, padding=1) if index < len(config.dim_mults) else nn.Identity()
            self.down.append(level(narrow, wide, halve))
        self.middle = level(widths[-1], widths[-1], nn.Identity())
        for narrow, wide in zip(widths[-2:0:-1], widths[:1:-1]):
            self.up.append(level(2 * wide, narrow, nn.ConvTranspose1d(narrow, narrow, 4, stride=2, padding=1)))
        self.final = ConvNorm(dim, dim, kernel, self.activation)
        self.conv_out = nn.Conv1d(dim, config.transition_dim, 1)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._leave_untraced()

    def _leave_untraced(self) -> None:
        """A capture for calls without gradients would leave out the energy's."""
        if self.config.calc_energy:
            leave_untraced(TemporalUnet, "_gradient")

    def forward(
        self, x: Tensor, t: Tensor, returns: Tensor | None = None, *, keep: Tensor | None = None, **options: Any
    ) -> Tensor:
        self._check(x, t, returns)
        if not self.config.calc_energy:
            embedding = self._embed(x, t, returns, keep)
            return self.run(x.transpose(1, 2), embedding, **options).transpose(1, 2)
        return self._gradient(x, t, returns, keep, options)

    def _gradient(
        self, x: Tensor, t: Tensor, returns: Tensor | None, keep: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        """Of the energy, in x."""
        differentiable = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            x, t = recorded(x), recorded(t)
            returns = None if returns is None else recorded(returns)
            x = x if x.requires_grad else x.detach().requires_grad_()
            y = self.run(x.transpose(1, 2), self._embed(x, t, returns, keep), **options).transpose(1, 2)
            (gradient,) = torch.autograd.grad((y - x).square().mean(), x, create_graph=differentiable)
        return gradient

    def run(
        self, x: Tensor, embedding: Tensor, *, control: Control | None = None, reuse: Reuse | None = None
    ) -> Tensor:
        """(B, transition_dim, H) -> the same, given the embedding after the activation. There is one skip a level, of
        which the first level's is not used."""
        levels, up = list(self.down), list(self.up)
        given = len(levels) if control is None or control.skips is None else len(control.skips)
        expect(
            given == len(levels), f"control must have {len(levels)} skips, one for each of the network's, got {given}"
        )
        outer = len(levels) if reuse is None else reuse.depth
        split = len(levels) - outer  # where the way up comes to the skips of the outer levels
        skips: list[Tensor] = []

        def descend(levels: list[nn.Module], h: Tensor, skips: list[Tensor]) -> Tensor:
            for level in levels:
                assert isinstance(level, Level)
                skips.append(level(h, embedding))
                h = level.resample(skips[-1])
            return h

        def ascend(levels: list[nn.Module], h: Tensor, skips: list[Tensor]) -> Tensor:
            for level in levels:
                assert isinstance(level, Level)
                h = level.resample(level(torch.cat([h, take(skips, control)], dim=1), embedding))
            return h

        h = descend(levels[:outer], x, skips)

        def deep() -> Tensor:
            below = list(skips)
            inner = self.middle(descend(levels[outer:], h, below), embedding)
            if control is not None and control.middle is not None:
                inner = inner + control.middle
            return ascend(up[:split], inner, below)

        result = deep() if reuse is None else reuse.compute(h, deep)
        return self.conv_out(self.final(ascend(up[split:], result, skips)))

    def dropped(self, batch: int) -> Tensor:
        """keep for a training step, (batch,): False as often as condition_dropout."""
        return torch.rand(batch, device=self.conv_out.weight.device) >= self.config.condition_dropout

    def _embed(self, x: Tensor, t: Tensor, returns: Tensor | None, keep: Tensor | None) -> Tensor:
        """(B, dim), or (B, 2 dim) with returns, after the activation."""
        features = rate_embedding(t.to(embedding_dtype(x)), self.config.dim)
        embedding = self.time_embedding(features.to(x.dtype))
        if self.return_embedding is not None:
            if returns is None:
                more = torch.zeros_like(embedding)
            else:
                more = self.return_embedding(returns.to(x.dtype))
                more = more if keep is None else torch.where(keep[:, None], more, torch.zeros_like(more))
            embedding = torch.cat([embedding, more], dim=1)
        return self.activation(embedding)

    def _check(self, x: Tensor, t: Tensor, returns: Tensor | None) -> None:
        numbers, multiple = self.config.transition_dim, 2 ** (len(self.config.dim_mults) - 1)
        expect(
            x.ndim == 3 and x.shape[2] == numbers and x.shape[1] % multiple == 0,
            f"x must be (B, H, {numbers}) with H divisible by {multiple}, got {tuple(x.shape)}",
        )
        expect(t.shape == x.shape[:1], f"t must be ({len(x)},), one time a sample, got {tuple(t.shape)}")
        if returns is not None:
            expect(self.config.returns_condition, "returns were given, but the model has no returns_condition")
            expect(tuple(returns.shape) == (len(x), 1), f"returns must be ({len(x)}, 1), got {tuple(returns.shape)}")


class Level(nn.Module):
    """Two residual blocks; `resample` is for the caller."""

    def __init__(self, block1: ResidualBlock, block2: ResidualBlock, resample: nn.Module) -> None:
        super().__init__()
        self.block1, self.block2, self.resample = block1, block2, resample

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return self.block2(self.block1(h, embedding), embedding)


class ResidualBlock(nn.Module):
    """Two `ConvNorm`, the embedding added between them: (B, in, H) -> (B, out, H)."""

    def __init__(
        self, in_channels: int, out_channels: int, embedding: int, kernel: int, activation: Activation
    ) -> None:
        super().__init__()
        self.block1 = ConvNorm(in_channels, out_channels, kernel, activation)
        self.shift = nn.Linear(embedding, out_channels)
        self.block2 = ConvNorm(out_channels, out_channels, kernel, activation)
        self.skip = nn.Conv1d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.block1(x) + self.shift(embedding)[..., None]
        return self.block2(h) + self.skip(x)


class ConvNorm(nn.Module):
    """Convolution, group norm, activation: (B, in, H) -> (B, out, H)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, activation: Activation) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel, padding=kernel // 2)
        self.norm = GroupNorm(8, out_channels)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


def recorded(x: Tensor) -> Tensor:
    """x, or a copy of it, through which gradients may be taken: of what was made in inference mode they may not."""
    return x.clone() if x.is_inference() else x
