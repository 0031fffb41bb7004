"""The U-Net of Ho et al. 2020, DDPM (Appendix B), in its PyTorch form (`Model` in latent-diffusion and DDIM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.autoencoder import make_attention
from fastdiff.models.parts.backbone import Backbone
from fastdiff.models.parts.blocks import (
    Downsample,
    GroupNorm,
    ResBlock,
    Upsample,
    embedding_dtype,
    mlp,
    timestep_embedding,
)


@dataclass(frozen=True)
class DDPMConfig:
    """The arguments of `Model`.

    ch: features at full resolution, times ch_mult at each level. attn_resolutions: pixels a side where blocks are
    followed by attention, for pictures of `resolution`. use_timestep: False for a network without times.
    """

    ch: int
    out_ch: int
    in_channels: int
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resolution: int
    ch_mult: tuple[int, ...] = (1, 2, 4, 8)
    dropout: float = 0.0
    resamp_with_conv: bool = True
    use_timestep: bool = True
    use_linear_attn: bool = False
    attn_type: str = "vanilla"


class DDPM(Backbone):
    """Noise-prediction network: `model(x, t, context)` -> (B, out_ch, H, W).

    x: (B, in_channels, H, W), of which channels that are given as `context` are a part. t: (B,) training times,
    fractional ones included. Raises ValueError where these do not fit.
    """

    def __init__(self, config: DDPMConfig) -> None:
        embedding = 4 * config.ch if config.use_timestep else None

        def norm(channels: int) -> GroupNorm:
            return GroupNorm(32, channels, eps=1e-6)

        def attention(place: str, level: int, index: int, channels: int) -> nn.Module | None:
            if place != "middle" and config.resolution >> level not in config.attn_resolutions:
                return None
            return make_attention(channels, "linear" if config.use_linear_attn else config.attn_type, norm)

        super().__init__(
            in_channels=config.in_channels,
            out_channels=config.out_ch,
            channels=[config.ch * mult for mult in config.ch_mult],
            stem_channels=config.ch,
            blocks=[config.num_res_blocks] * len(config.ch_mult),
            residual=lambda i, o: ResBlock(i, o, embedding, norm=norm, adaptive=False, dropout=config.dropout),
            attention=attention,
            down=lambda level, channels: Downsample(channels, conv=config.resamp_with_conv, padding=0),
            up=lambda level, channels: Upsample(channels, conv=config.resamp_with_conv),
            norm=norm,
        )
        self.config = config
        self.time_embedding = mlp(config.ch, 4 * config.ch) if config.use_timestep else None

    def forward(self, x: Tensor, t: Tensor | None = None, context: Tensor | None = None, **options: Any) -> Tensor:
        if context is not None:
            x = torch.cat([x, context], dim=1)
        if self.time_embedding is None:
            return self.run(x, None, **options)
        expect(
            t is not None and t.shape == x.shape[:1],
            f"t must be ({len(x)},), one time a sample, got {None if t is None else tuple(t.shape)}",
        )
        assert t is not None  # else refused above
        times = timestep_embedding(t.to(embedding_dtype(x)), self.config.ch, sin_first=True, shift=1.0)
        return self.run(x, F.silu(self.time_embedding(times.to(x.dtype))), **options)
