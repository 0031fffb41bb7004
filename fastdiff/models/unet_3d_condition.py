"""The U-Net that the config of diffusers' UNet3DConditionModel describes: text to video. Wang et al. 2023, ModelScope
Text-to-Video Technical Report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect, unknown
from fastdiff.models.parts.blocks import Downsample, ResBlock, Upsample, mlp
from fastdiff.models.parts.temporal import FrameConvolutions, FrameTransformer, SpaceTime
from fastdiff.models.parts.transformer import SpatialTransformer
from fastdiff.models.parts.video import VideoBackbone
from fastdiff.models.unet_2d import ACTIVATIONS, grouped

BLOCKS = ("CrossAttn{way}Block3D", "{way}Block3D")
_HEADS_IN = 8  # of the transformer before the first level


@dataclass(frozen=True)
class UNet3DConditionConfig:
    """The arguments of `UNet3DConditionModel`, with its defaults.

    attention_head_dim: channels of a head. num_attention_heads: refused, as there. sample_size changes nothing.
    """

    sample_size: int | None = None
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",)
    up_block_types: tuple[str, ...] = ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1024
    attention_head_dim: int = 64
    num_attention_heads: int | None = None
    time_cond_proj_dim: int | None = None

    def __post_init__(self) -> None:
        check_blocks(self, BLOCKS)
        expect(self.num_attention_heads is None, "num_attention_heads must be None, as in diffusers")
        for field in ("attention_head_dim", "layers_per_block", "norm_num_groups"):
            value = getattr(self, field)
            expect(isinstance(value, int), f"{field} must be one number, got {value!r}")


class UNet3DCondition(VideoBackbone):
    """`model(x, t, context)` -> (B, out_channels, F, H, W): diffusers' UNet3DConditionModel.

    x: (B, in_channels, F, H, W), any F, H and W. t: (B,) times. context: (B, S, cross_attention_dim), for all frames.
    timestep_cond: (B, time_cond_proj_dim), of a guidance scale say. Raises ValueError where these do not fit.
    """

    def __init__(self, config: UNet3DConditionConfig) -> None:
        levels, width, size = len(config.block_out_channels), config.block_out_channels[0], config.attention_head_dim
        embedding = 4 * width
        norm, norm_in = grouped(config.norm_num_groups, config.norm_eps), grouped(config.norm_num_groups, 1e-6)

        def residual(in_channels: int, out_channels: int, scale: float = 1.0) -> SpaceTime:
            block = ResBlock(in_channels, out_channels, embedding, norm=norm, adaptive=False, output_scale=1 / scale)
            return SpaceTime(block, FrameConvolutions(out_channels, config.norm_num_groups))

        def attention(place: str, level: int, index: int, channels: int) -> nn.Module | None:
            if not attends(config, place, level):
                return None
            heads = channels // size
            context = config.cross_attention_dim
            return SpaceTime(
                SpatialTransformer(channels, heads, size, depth=1, context_channels=context, norm=norm_in),
                FrameTransformer(channels, heads, size, depth=1, norm=norm_in),
            )

        super().__init__(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            channels=config.block_out_channels,
            blocks=[config.layers_per_block] * levels,
            residual=residual,
            attention=attention,
            down=lambda level, channels: Downsample(channels, padding=config.downsample_padding),
            up=lambda level, channels: Upsample(channels),
            norm=norm,
            middle=lambda i, o: residual(i, o, config.mid_block_scale_factor),
        )
        self.config = config
        self.transformer_in = FrameTransformer(width, _HEADS_IN, size, depth=1, norm=norm_in)
        self.time_embedding = mlp(width, embedding)
        guidance = config.time_cond_proj_dim
        self.cond_proj = None if guidance is None else nn.Linear(guidance, width, bias=False)

    def stem(self, x: Tensor) -> Tensor:
        return self.transformer_in(super().stem(x), x.shape[2])

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, *, timestep_cond: Tensor | None = None, **options: Any
    ) -> Tensor:
        config = self.config
        self.check_video(x, t, context, config.in_channels, config.cross_attention_dim)
        embedding = F.silu(self.embed_times(x, t, config.block_out_channels[0], timestep_cond))
        return self.run_video(x, embedding, context, **options)


def check_blocks(config: Any, names: tuple[str, ...]) -> None:
    """Raise ValueError unless a config has a known type of block for each level, and SiLU."""
    levels = len(config.block_out_channels)
    for way in ("Down", "Up"):
        field, known = f"{way.lower()}_block_types", [name.format(way=way) for name in names]
        types = getattr(config, field)
        expect(len(types) == levels, f"{field} must have {levels} entries, as block_out_channels, got {len(types)}")
        for kind in types:
            if kind not in known:
                raise unknown(f"block in {field}", kind, known)
    if config.act_fn not in ACTIVATIONS:
        raise unknown("act_fn", config.act_fn, ACTIVATIONS)


def attends(config: Any, place: str, level: int) -> bool:
    """Whether the blocks of a level attend to the context; the middle does."""
    types = config.down_block_types if place == "down" else config.up_block_types[::-1]
    return place == "middle" or types[level].startswith("CrossAttn")
