"""The magnitude-preserving U-Net of EDM2 (Karras et al. 2024, Analyzing and Improving the Training Dynamics of
Diffusion Models), config G, in the form of denoising-diffusion-pytorch's `KarrasUnet`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.ddp.karras_blocks import Attention, Block, MPConv, mp_add, mp_cat, mp_silu
from fastdiff.models.parts.backbone import take
from fastdiff.models.parts.blocks import embedding_dtype
from fastdiff.models.parts.control import Control
from fastdiff.models.parts.reuse import Reuse


@dataclass(frozen=True, kw_only=True)
class KarrasUnetConfig:
    """The arguments of `KarrasUnet`.

    dim: channels of the first level, twice as many at each level below it, at most dim_max. num_classes: None for a
    network without. attn_res: pixels a side where blocks have attention. fourier_dim: features of the time, with
    frequencies that are drawn and kept. mp_cat_t, mp_add_emb_t, attn_res_mp_add_t: the share of the second in the
    magnitude-preserving concatenations and sums. attn_flash, resnet_mp_add_t: have no effect; the sum of a residual
    block is with 0.3.
    """

    image_size: int
    dim: int = 192
    dim_max: int = 768
    num_classes: int | None = None
    channels: int = 4
    num_downsamples: int = 3
    num_blocks_per_stage: int = 4
    attn_res: int | tuple[int, ...] = (16, 8)
    fourier_dim: int = 16
    attn_dim_head: int = 64
    attn_flash: bool = False
    mp_cat_t: float = 0.5
    mp_add_emb_t: float = 0.5
    attn_res_mp_add_t: float = 0.3
    resnet_mp_add_t: float = 0.3
    dropout: float = 0.1
    self_condition: bool = False

    def __post_init__(self) -> None:
        expect(
            self.num_blocks_per_stage >= 1, f"num_blocks_per_stage must be 1 or more, got {self.num_blocks_per_stage}"
        )
        expect(
            self.image_size % 2**self.num_downsamples == 0,
            f"image_size must be divisible by {2**self.num_downsamples}, got {self.image_size}",
        )
        expect(self.fourier_dim % 2 == 0, f"fourier_dim must be even, got {self.fourier_dim}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        levels = range(1, self.num_downsamples + 1)
        return (self.dim, *(min(self.dim_max, self.dim * 2**level) for level in levels))

    def attends(self, level: int) -> bool:
        """Whether the blocks of a level have attention."""
        return self.image_size >> level in ((self.attn_res,) if isinstance(self.attn_res, int) else self.attn_res)


class KarrasUnet(nn.Module):
    """`model(x, t, y)` -> (B, channels, image_size, image_size).

    x: (B, channels, image_size, image_size). t: (B,) a function of the noise level, log(sigma) / 4 in the paper. y: for
    a network with num_classes, (B,) whole numbers, or (B, num_classes) one-hot rows or zeros. self_cond: an earlier
    estimate, like x, for a network with self_condition; zeros if not given. control: added to the skips and the middle.
    reuse: see `fastdiff.caching`. Raises ValueError where these do not fit.

    Weights are normalised at each call, and in training mode also where they are stored (Algorithm 1).
    """

    frequencies: Tensor

    def __init__(self, config: KarrasUnetConfig) -> None:
        super().__init__()
        self.config = config
        widths, blocks, embedding = config.widths, config.num_blocks_per_stage, 4 * config.dim

        def attention(level: int) -> Attention | None:
            if not config.attends(level):
                return None
            return Attention(widths[level], config.attn_dim_head, config.attn_res_mp_add_t)

        def block(level: int, before: int, *, encodes: bool = False, resample: str | None = None) -> Block:
            own = attention(level) if level > 0 or resample == "double" else None
            return Block(before, widths[level], embedding, own, config.dropout, encodes=encodes, resample=resample)

        self.stem = MPConv(config.channels * (1 + config.self_condition), config.dim, 3, with_ones=True)
        self.register_buffer("frequencies", torch.randn(config.fourier_dim // 2))
        self.time_embedding = MPConv(config.fourier_dim, embedding)
        self.class_embedding = None if config.num_classes is None else MPConv(config.num_classes, embedding)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            if level > 0:
                self.down.append(block(level, widths[level - 1], encodes=True, resample="halve"))
                self.up.insert(0, block(level - 1, width, resample="double"))
            self.down.extend(block(level, width, encodes=True) for _ in range(blocks))
            for _ in range(blocks + 1):
                self.up.insert(0, block(level, 2 * width))
        last = len(widths) - 1
        self.middle = nn.ModuleList(block(last, widths[last]) for _ in range(2))
        self.conv_out = MPConv(config.dim, config.channels, 3)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        *,
        self_cond: Tensor | None = None,
        control: Control | None = None,
        reuse: Reuse | None = None,
    ) -> Tensor:
        seen, embedding = self._inputs(x, self_cond), mp_silu(self._embed(x, t, y))
        count, down, up = len(self.down) + 1, list(self.down), list(self.up)
        given = count if control is None or control.skips is None else len(control.skips)
        expect(given == count, f"control must have {count} skips, one for each of the network's, got {given}")
        outer = len(down) if reuse is None else reuse.depth
        taking = [index for index, stage in enumerate(up) if isinstance(stage, Block) and stage.resample is None]
        split = taking[-outer - 1]  # where the way up comes to the skips of the outer stages
        skips = [self.stem(seen)]

        def descend(stages: list[nn.Module], skips: list[Tensor]) -> Tensor:
            for stage in stages:
                skips.append(stage(skips[-1], embedding))
            return skips[-1]

        def ascend(stages: list[nn.Module], h: Tensor, skips: list[Tensor]) -> Tensor:
            for stage in stages:
                assert isinstance(stage, Block)
                if stage.resample is None:
                    h = mp_cat(h, take(skips, control), self.config.mp_cat_t)
                h = stage(h, embedding)
            return h

        h = descend(down[:outer], skips)

        def deep() -> Tensor:
            below = list(skips)
            inner = descend(down[outer:], below)
            for stage in self.middle:
                inner = stage(inner, embedding)
            if control is not None and control.middle is not None:
                inner = inner + control.middle
            return ascend(up[:split], inner, below)

        result = deep() if reuse is None else reuse.compute(h, deep)
        return self.conv_out(ascend(up[split:], result, skips)) * self.gain

    def _inputs(self, x: Tensor, self_cond: Tensor | None) -> Tensor:
        size, channels = self.config.image_size, self.config.channels
        expect(
            tuple(x.shape[1:]) == (channels, size, size),
            f"x must be (B, {channels}, {size}, {size}), got {tuple(x.shape)}",
        )
        if not self.config.self_condition:
            expect(self_cond is None, "self_cond was given, but the model has no self_condition")
            return x
        if self_cond is None:
            self_cond = torch.zeros_like(x)
        expect(self_cond.shape == x.shape, f"self_cond must be {tuple(x.shape)}, as x, got {tuple(self_cond.shape)}")
        return torch.cat([self_cond, x], dim=1)

    def _embed(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        expect(t.shape == x.shape[:1], f"t must be ({len(x)},), one time a sample, got {tuple(t.shape)}")
        t, classes = t.to(embedding_dtype(x)), self.config.num_classes
        angles = t[:, None] * self.frequencies.to(t.dtype) * 2 * math.pi
        features = torch.cat([angles.sin(), angles.cos()], dim=1) * math.sqrt(2)
        embedding = self.time_embedding(features.to(x.dtype))
        if self.class_embedding is None or classes is None:
            expect(y is None, "y was given, but the model has no classes")
            return embedding
        got = None if y is None else tuple(y.shape)
        if y is None or got not in ((len(x),), (len(x), classes)):
            raise ValueError(f"y must be ({len(x)},), whole numbers, or ({len(x)}, {classes}), got {got}")
        rows = F.one_hot(y, classes) if y.ndim == 1 else y
        return mp_add(embedding, self.class_embedding(rows.to(x.dtype) * math.sqrt(classes)), self.config.mp_add_emb_t)
