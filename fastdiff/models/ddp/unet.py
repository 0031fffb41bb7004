"""The U-Net of denoising-diffusion-pytorch (Ho et al. 2020, DDPM) for pictures, for sequences, and with classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.guidance.classifier_free import rescale_guidance
from fastdiff.models.ddp.blocks import Attention, Double, LinearAttention
from fastdiff.models.ddp.config import ClassUnetConfig, Shared, Unet1DConfig, UnetConfig
from fastdiff.models.parts.backbone import take
from fastdiff.models.parts.blocks import conv_nd, embedding_dtype, rate_embedding
from fastdiff.models.parts.control import Control
from fastdiff.models.parts.reuse import Reuse
from fastdiff.models.parts.rms import RMSResBlock

_LINEAR = (4, 32)  # heads, and channels of one, of the linear attention that has no arguments for them


class Frame(nn.Module):
    """What the three have in common: `run(x, embedding)`.

    attention: (level, channels) -> that of a level on the way down or up. middle: that of the middle. halve: (in, out)
    -> what halves the resolution.
    """

    def __init__(
        self,
        config: Shared,
        *,
        inputs: int,
        embedding: int,
        attention: Callable[[int, int], nn.Module],
        middle: Callable[[int], nn.Module],
        halve: Callable[[int, int], nn.Module],
        dropout: float = 0.0,
        theta: float = 10_000,
        dims: int = 2,
    ) -> None:
        super().__init__()
        self.theta, self.inputs, self.dims = theta, inputs, dims
        widths, time = config.widths, 4 * config.dim
        last = len(widths) - 2

        def block(in_channels: int, out_channels: int) -> RMSResBlock:
            return RMSResBlock(in_channels, out_channels, embedding, dropout=dropout, dims=dims)

        def conv(in_channels: int, out_channels: int) -> nn.Module:
            return conv_nd(dims, in_channels, out_channels, 3, padding=1)

        self.stem = conv_nd(dims, inputs, widths[0], 7, padding=3)
        self.frequencies, features = None, config.dim
        if config.has_learned_times:
            drawn = torch.randn(config.learned_sinusoidal_dim // 2)
            self.frequencies = nn.Parameter(drawn, requires_grad=not config.random_fourier_features)
            features = config.learned_sinusoidal_dim + 1
        self.time_embedding = nn.Sequential(nn.Linear(features, time), nn.GELU(), nn.Linear(time, time))
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for index, (narrow, wide) in enumerate(pairwise(widths)):
            resample = halve(narrow, wide) if index < last else conv(narrow, wide)
            self.down.append(Level(block(narrow, narrow), block(narrow, narrow), attention(index, narrow), resample))
            double = Double(wide, narrow, dims=dims) if index > 0 else conv(wide, narrow)
            both = wide + narrow
            self.up.insert(0, Level(block(both, wide), block(both, wide), attention(index, wide), double))
        width = widths[-1]
        self.middle = nn.ModuleList([block(width, width), middle(width), block(width, width)])
        self.final = block(2 * widths[0], widths[0])
        self.conv_out = conv_nd(dims, widths[0], config.out_channels, 1)

    def embed(self, x: Tensor, t: Tensor) -> Tensor:
        """The embedding of the times, (B, 4 dim), before its activation."""
        expect(t.shape == x.shape[:1], f"t must be ({len(x)},), one time a sample, got {tuple(t.shape)}")
        t = t.to(embedding_dtype(x))
        if self.frequencies is None:
            first = self.time_embedding[0]
            assert isinstance(first, nn.Linear)
            features = rate_embedding(t, first.in_features, max_period=self.theta)
        else:
            angles = t[:, None] * self.frequencies.to(t.dtype) * 2 * math.pi
            features = torch.cat([t[:, None], angles.sin(), angles.cos()], dim=1)
        return self.time_embedding(features.to(x.dtype))

    def run(
        self, x: Tensor, embedding: Tensor, *, control: Control | None = None, reuse: Reuse | None = None
    ) -> Tensor:
        """The network, given its embedding after the activation. control: added to the 2 skips a level, and to the
        middle. reuse: see `fastdiff.caching`; its depth counts levels. Raises ValueError where these do not fit."""
        count, levels = 2 * len(self.down), list(self.down)
        given = count if control is None or control.skips is None else len(control.skips)
        expect(given == count, f"control must have {count} skips, one for each of the network's, got {given}")
        outer = len(levels) if reuse is None else reuse.depth
        stem = self.stem(x)
        skips: list[Tensor] = []

        def descend(levels: list[nn.Module], h: Tensor, skips: list[Tensor]) -> Tensor:
            for level in levels:
                assert isinstance(level, Level)
                skips.append(level.block1(h, embedding))
                skips.append(level.attention(level.block2(skips[-1], embedding)))
                h = level.resample(skips[-1])
            return h

        def ascend(levels: list[nn.Module], h: Tensor, skips: list[Tensor]) -> Tensor:
            for level in levels:
                assert isinstance(level, Level)
                h = level.block1(torch.cat([h, take(skips, control)], dim=1), embedding)
                h = level.block2(torch.cat([h, take(skips, control)], dim=1), embedding)
                h = level.resample(level.attention(h))
            return h

        h = descend(levels[:outer], stem, skips)
        up = list(self.up)

        def deep() -> Tensor:
            below = list(skips)
            first, attention, second = self.middle
            inner = second(attention(first(descend(levels[outer:], h, below), embedding)), embedding)
            if control is not None and control.middle is not None:
                inner = inner + control.middle
            return ascend(up[: len(up) - outer], inner, below)

        result = deep() if reuse is None else reuse.compute(h, deep)
        result = ascend(up[len(up) - outer :], result, skips)
        return self.conv_out(self.final(torch.cat([result, stem], dim=1), embedding))

    def seen(self, x: Tensor, self_cond: Tensor | None, channels: int) -> Tensor:
        """x, with an earlier estimate before it if the network sees one. Raises ValueError if they do not fit."""
        multiple = 2 ** (len(self.down) - 1)
        fits = x.ndim == 2 + self.dims and x.shape[1] == channels
        fits = fits and all(size % multiple == 0 for size in x.shape[2:])
        axes, sizes = ("L", "L") if self.dims == 1 else ("H, W", "H and W")
        expect(fits, f"x must be (B, {channels}, {axes}) with {sizes} divisible by {multiple}, got {tuple(x.shape)}")
        if self.inputs == channels:
            expect(self_cond is None, "self_cond was given, but the model has no self_condition")
            return x
        if self_cond is None:
            self_cond = torch.zeros_like(x)
        expect(self_cond.shape == x.shape, f"self_cond must be {tuple(x.shape)}, as x, got {tuple(self_cond.shape)}")
        return torch.cat([self_cond, x], dim=1)


class Level(nn.Module):
    """Two residual blocks, attention, and what changes the resolution; called by the frame, part by part."""

    def __init__(self, block1: RMSResBlock, block2: RMSResBlock, attention: nn.Module, resample: nn.Module) -> None:
        super().__init__()
        self.block1, self.block2, self.attention, self.resample = block1, block2, attention, resample


class Unet(Frame):
    """Of pictures: `model(x, t)` -> (B, out_dim, H, W).

    x: (B, channels, H, W), H and W divisible by 2 ** (len(dim_mults) - 1). t: (B,) training times, fractional ones
    included. self_cond: an earlier estimate, like x, for a network with self_condition; zeros if not given (Chen et al.
    2022, Analog Bits, Section 2.2). control, reuse: see `run`. Raises ValueError where these do not fit.
    """

    def __init__(self, config: UnetConfig) -> None:
        def attention(level: int, channels: int) -> nn.Module:
            kind = Attention if config.attends_fully[level] else LinearAttention
            return kind(channels, config.heads[level], config.head_channels[level], memory=True)

        super().__init__(
            config,
            inputs=config.channels * (1 + config.self_condition),
            embedding=4 * config.dim,
            attention=attention,
            middle=lambda channels: Attention(channels, config.heads[-1], config.head_channels[-1], memory=True),
            # a pixel unshuffle and a 1 x 1 convolution, as one convolution
            halve=lambda narrow, wide: nn.Conv2d(narrow, wide, 2, stride=2),
            dropout=config.dropout,
            theta=config.sinusoidal_pos_emb_theta,
        )
        self.config = config

    def forward(self, x: Tensor, t: Tensor, *, self_cond: Tensor | None = None, **options: Any) -> Tensor:
        seen = self.seen(x, self_cond, self.config.channels)
        return self.run(seen, F.silu(self.embed(x, t)), **options)


class Unet1D(Frame):
    """Of sequences: `model(x, t)`, (B, channels, L) -> (B, out_dim, L). Otherwise as `Unet`."""

    def __init__(self, config: Unet1DConfig) -> None:
        super().__init__(
            config,
            inputs=config.channels * (1 + config.self_condition),
            embedding=4 * config.dim,
            attention=lambda level, channels: LinearAttention(channels, *_LINEAR),
            middle=lambda channels: Attention(channels, config.attn_heads, config.attn_dim_head),
            halve=lambda narrow, wide: nn.Conv1d(narrow, wide, 4, stride=2, padding=1),
            dropout=config.dropout,
            theta=config.sinusoidal_pos_emb_theta,
            dims=1,
        )
        self.config = config

    def forward(self, x: Tensor, t: Tensor, *, self_cond: Tensor | None = None, **options: Any) -> Tensor:
        seen = self.seen(x, self_cond, self.config.channels)
        return self.run(seen, F.silu(self.embed(x, t)), **options)


class ClassUnet(Frame):
    """Of pictures with classes: `model(x, t, y)` -> (B, out_dim, H, W).

    y: (B,) classes as whole numbers; num_classes, one more than the last, is for none (`unconditional(B)`). keep: (B,)
    boolean, False for samples whose class is left out all the same, as `dropped` draws in training. Otherwise as
    `Unet`; the original draws what to leave out at each call that does not forbid it, this network does not.
    """

    def __init__(self, config: ClassUnetConfig) -> None:
        super().__init__(
            config,
            inputs=config.channels,
            embedding=8 * config.dim,
            attention=lambda level, channels: LinearAttention(channels, *_LINEAR),
            middle=lambda channels: Attention(channels, config.attn_heads, config.attn_dim_head),
            halve=lambda narrow, wide: nn.Conv2d(narrow, wide, 4, stride=2, padding=1),
        )
        self.config = config
        classes = 4 * config.dim
        self.classes = nn.Embedding(config.num_classes, config.dim)
        self.no_class = nn.Parameter(torch.randn(config.dim))
        self.class_embedding = nn.Sequential(nn.Linear(config.dim, classes), nn.GELU(), nn.Linear(classes, classes))

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, *, keep: Tensor | None = None, **options: Any
    ) -> Tensor:
        x = self.seen(x, None, self.config.channels)
        got = None if y is None else tuple(y.shape)
        if y is None or got != (len(x),):
            raise ValueError(f"y must be ({len(x)},), one class a sample, got {got}")
        rows = torch.cat([self.classes.weight, self.no_class[None]])[y]
        if keep is not None:
            rows = torch.where(keep[:, None], rows, self.no_class)
        embedding = torch.cat([self.embed(x, t), self.class_embedding(rows.to(x.dtype))], dim=1)
        return self.run(x, F.silu(embedding), **options)

    def unconditional(self, batch: int) -> Tensor:
        """y for samples without a class, (batch,)."""
        return torch.full((batch,), self.config.num_classes, device=self.no_class.device)

    def dropped(self, batch: int) -> Tensor:
        """keep for a training step, (batch,): False as often as cond_drop_prob."""
        return torch.rand(batch, device=self.no_class.device) >= self.config.cond_drop_prob

    def forward_with_cond_scale(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        *,
        cond_scale: float = 1.0,
        rescaled_phi: float = 0.0,
        remove_parallel_component: bool = True,
        keep_parallel_frac: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """The guided output and the one without classes.

        cond_scale: of Ho & Salimans 2022, Eq. 6 (w + 1). remove_parallel_component: leave out the part of the update
        that lies along the conditional output, but for a share keep_parallel_frac of it (Sadat et al. 2024, APG,
        Section 4.1). rescaled_phi: the share of Lin et al. 2024, Eq. 16.
        """
        cond, none = self(x, t, y), self(x, t, self.unconditional(len(x)))
        update = cond - none
        if remove_parallel_component:
            along = parallel_part(update, cond)
            update = update - along + along * keep_parallel_frac
        guided = cond + update * (cond_scale - 1)
        if rescaled_phi > 0:
            guided = rescale_guidance(guided, cond, share=rescaled_phi)
        return guided, none


def parallel_part(x: Tensor, y: Tensor) -> Tensor:
    """The part of each sample of x that lies along that of y, computed in float64."""
    along = F.normalize(y.double().flatten(1), dim=1)
    share = (x.double().flatten(1) * along).sum(dim=1, keepdim=True)
    return (share * along).reshape(x.shape).to(x.dtype)
