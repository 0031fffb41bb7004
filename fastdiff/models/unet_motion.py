"""The U-Net that the config of diffusers' UNetMotionModel describes: a U-Net of pictures with motion modules. Guo et
al. 2023, AnimateDiff, Section 4.2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect, unknown
from fastdiff.models.parts.blocks import Downsample, ResBlock, Upsample, embedding_dtype, mlp, timestep_embedding
from fastdiff.models.parts.temporal import FrameTransformer, SpaceTime
from fastdiff.models.parts.transformer import SpatialTransformer
from fastdiff.models.parts.video import VideoBackbone
from fastdiff.models.unet_2d import grouped, per_level
from fastdiff.models.unet_3d_condition import attends, check_blocks

BLOCKS = ("CrossAttn{way}BlockMotion", "{way}BlockMotion")
Depths = int | tuple[Any, ...]  # one for all, or one a level: a number, or one for each of its blocks


@dataclass(frozen=True)
class UNetMotionConfig:
    """The arguments of `UNetMotionModel`, with its defaults.

    num_attention_heads: of the transformers on pixels; motion_num_attention_heads: of the motion modules.
    motion_max_seq_length: the greatest number of frames. Values that change nothing: sample_size,
    use_linear_projection, reverse_motion_num_attention_heads (as there).
    """

    sample_size: int | None = None
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlockMotion",) * 3 + ("DownBlockMotion",)
    up_block_types: tuple[str, ...] = ("UpBlockMotion",) + ("CrossAttnUpBlockMotion",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: Depths = 1
    reverse_transformer_layers_per_block: Depths | None = None
    temporal_transformer_layers_per_block: Depths = 1
    reverse_temporal_transformer_layers_per_block: Depths | None = None
    transformer_layers_per_mid_block: Depths | None = None
    temporal_transformer_layers_per_mid_block: Depths | None = 1
    use_linear_projection: bool = False
    num_attention_heads: int | tuple[int, ...] = 8
    motion_max_seq_length: int = 32
    motion_num_attention_heads: int | tuple[int, ...] = 8
    reverse_motion_num_attention_heads: Any = None
    use_motion_mid_block: bool = True
    mid_block_layers: int = 1
    encoder_hid_dim: int | None = None
    encoder_hid_dim_type: str | None = None
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    time_cond_proj_dim: int | None = None

    def __post_init__(self) -> None:
        check_blocks(self, BLOCKS)
        expect(self.norm_num_groups is not None, "norm_num_groups must be a number, got None")
        expect(self.mid_block_layers >= 1, f"mid_block_layers must be >= 1, got {self.mid_block_layers}")
        expect(self.encoder_hid_dim_type is None, "encoder_hid_dim_type must be None: image prompts are not loaded")
        if self.addition_embed_type not in (None, "text_time"):
            raise unknown("addition_embed_type", self.addition_embed_type, ("text_time",))

    @property
    def levels(self) -> int:
        """How many there are."""
        return len(self.block_out_channels)

    @property
    def context_channels(self) -> int:
        """cross_attention_dim as one number. Raises ValueError where levels differ, as one context is for all."""
        dims = set(per_level(self.cross_attention_dim, self.levels))
        expect(len(dims) == 1, f"cross_attention_dim must repeat one number, got {self.cross_attention_dim}")
        return dims.pop()

    def depth(self, kind: str, place: str, level: int, index: int) -> int:
        """Blocks of a transformer. kind: "transformer" or "temporal_transformer"."""
        down = per_level(getattr(self, f"{kind}_layers_per_block"), self.levels)
        chosen: Any = down[level]
        if place == "middle":
            chosen = getattr(self, f"{kind}_layers_per_mid_block")
            if chosen is None:
                chosen = down[-1] if isinstance(down[-1], int) else 1
        elif place == "up":
            reverse = getattr(self, f"reverse_{kind}_layers_per_block")
            expect(
                reverse is not None or all(isinstance(depth, int) for depth in down),
                f"reverse_{kind}_layers_per_block must be given where blocks of one level differ",
            )
            chosen = (down[::-1] if reverse is None else per_level(reverse, self.levels))[self.levels - 1 - level]
        return chosen if isinstance(chosen, int) else chosen[index]


class UNetMotion(VideoBackbone):
    """`model(x, t, context, ...)` -> (B, out_channels, F, H, W): diffusers' UNetMotionModel.

    x: (B, in_channels, F, H, W), F at most motion_max_seq_length, any H and W. t: (B,) times. context: (B, S,
    cross_attention_dim), for all frames. timestep_cond: (B, time_cond_proj_dim). text_embeds (B, P) and time_ids (B,
    N): of Stable Diffusion XL (addition_embed_type "text_time"). Raises ValueError where these do not fit.
    """

    def __init__(self, config: UNetMotionConfig) -> None:
        width = config.block_out_channels[0]
        embedding = 4 * width
        norm, norm_in = grouped(config.norm_num_groups, config.norm_eps), grouped(config.norm_num_groups, 1e-6)
        heads = per_level(config.num_attention_heads, config.levels)
        motion_heads = per_level(config.motion_num_attention_heads, config.levels)
        context = config.context_channels

        def residual(in_channels: int, out_channels: int, scale: float = 1.0) -> SpaceTime:
            block = ResBlock(in_channels, out_channels, embedding, norm=norm, adaptive=False, output_scale=1 / scale)
            return SpaceTime(block, None)

        def attention(place: str, level: int, index: int, channels: int) -> SpaceTime:
            space = time = None
            if attends(config, place, level):
                depth = config.depth("transformer", place, level, index)
                size = channels // heads[level]
                space = SpatialTransformer(
                    channels, heads[level], size, depth=depth, context_channels=context, norm=norm_in
                )
            if place != "middle" or config.use_motion_mid_block:
                depth = config.depth("temporal_transformer", place, level, index)
                size, positions = channels // motion_heads[level], config.motion_max_seq_length
                time = FrameTransformer(
                    channels, motion_heads[level], size, depth=depth, norm=norm_in, positions=positions
                )
            return SpaceTime(space, time)

        def middle(in_channels: int, out_channels: int) -> SpaceTime:
            return residual(in_channels, out_channels, config.mid_block_scale_factor)

        super().__init__(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            channels=config.block_out_channels,
            blocks=per_level(config.layers_per_block, config.levels),
            residual=residual,
            attention=attention,
            down=lambda level, channels: Downsample(channels, padding=config.downsample_padding),
            up=lambda level, channels: Upsample(channels),
            norm=norm,
            middle=middle,
        )
        for index in range(1, config.mid_block_layers):
            self.middle.append(attention("middle", config.levels - 1, index, self.width))
            self.middle.append(middle(self.width, self.width))
        self.config = config
        self.time_embedding = mlp(width, embedding)
        guidance = config.time_cond_proj_dim
        self.cond_proj = None if guidance is None else nn.Linear(guidance, width, bias=False)
        self.add_embedding = None
        if config.addition_embed_type is not None:
            sizes = config.projection_class_embeddings_input_dim, config.addition_time_embed_dim
            if sizes[0] is None or sizes[1] is None:
                raise ValueError(
                    "addition_embed_type 'text_time' needs projection_class_embeddings_input_dim and "
                    "addition_time_embed_dim"
                )
            self.add_embedding = mlp(sizes[0], embedding)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        *,
        timestep_cond: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        config = self.config
        self.check_video(x, t, context, config.in_channels, config.context_channels)
        most = config.motion_max_seq_length
        expect(x.shape[2] <= most, f"x must have at most {most} frames (motion_max_seq_length), got {x.shape[2]}")
        embedding = self.embed_times(x, t, config.block_out_channels[0], timestep_cond)
        if self.add_embedding is not None:
            if text_embeds is None or time_ids is None:
                raise ValueError(
                    "text_embeds and time_ids must be given to a model with addition_embed_type 'text_time'"
                )
            assert config.addition_time_embed_dim is not None  # else refused above
            numbers = timestep_embedding(time_ids.flatten().to(embedding_dtype(x)), config.addition_time_embed_dim)
            added = torch.cat([text_embeds, numbers.reshape(len(x), -1).to(text_embeds.dtype)], dim=1)
            embedding = embedding + self.add_embedding(added)
        return self.run_video(x, F.silu(embedding), context, **options)
