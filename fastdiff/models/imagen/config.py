"""The arguments of imagen-pytorch's `Unet`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from fastdiff.errors import expect, unknown

Value = TypeVar("Value", int, bool)
RESIZE_MODES = ("nearest", "nearest-exact", "bilinear", "bicubic", "area")
MAX_TEXT = 512  # positions of the pool of a text's tokens


class Level(NamedTuple):
    """One resolution: channels before it and after it, and those of its blocks on the way down.

    blocks: residual ones after the first. attention, cross: "full", "linear" or None: among the pixels, and of the
    first residual block to the conditions. depth: of the attention among the pixels.
    """

    in_channels: int
    out_channels: int
    channels: int
    blocks: int
    attention: str | None
    cross: str | None
    depth: int


@dataclass(frozen=True)
class ImagenConfig:
    """The arguments of `Unet`; those with one value a level take one for all, too.

    dim: channels that dim_mults multiply. cond_dim: of the conditions' tokens, dim if not given. text_embed_dim: of the
    text's, T5's. max_text_len: of them; more are cut off. attn_pool_text: they are pooled to attn_pool_num_latents
    (Jaegle et al. 2021, Perceiver), else taken as they are. lowres_cond: the network sees a small picture, enlarged,
    and its noise level. self_cond: it sees its last result. cond_images_channels: of one more picture, resized to x's
    size by resize_mode. memory_efficient: a level starts by halving the resolution and ends by doubling it (Saharia et
    al. 2022, Appendix B.1, the efficient U-Net). use_global_context_attn: residual blocks end in a gate (Cao et al.
    2019, GCNet). scale_skip_connection: skips times sqrt(1/2). combine_upsample_fmaps: the end sees every level.
    init_conv_to_final_conv_residual: it sees the first convolution. cross_embed_downsample must be False, the original
    fails with it. Values that change nothing here: num_image_tokens, out_dim, layer_attns_add_text_cond, dropout.
    """

    dim: int
    text_embed_dim: int = 768
    num_resnet_blocks: int | tuple[int, ...] = 1
    cond_dim: int | None = None
    num_image_tokens: int = 4
    num_time_tokens: int = 2
    learned_sinu_pos_emb_dim: int = 16
    out_dim: int | None = None
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    cond_images_channels: int = 0
    channels: int = 3
    channels_out: int | None = None
    attn_dim_head: int = 64
    attn_heads: int = 8
    ff_mult: float = 2.0
    lowres_cond: bool = False
    layer_attns: bool | tuple[bool, ...] = True
    layer_attns_depth: int | tuple[int, ...] = 1
    layer_mid_attns_depth: int = 1
    layer_attns_add_text_cond: bool = True
    attend_at_middle: bool = True
    layer_cross_attns: bool | tuple[bool, ...] = True
    use_linear_attn: bool | tuple[bool, ...] = False
    use_linear_cross_attn: bool | tuple[bool, ...] = False
    cond_on_text: bool = True
    max_text_len: int = 256
    init_dim: int | None = None
    init_conv_kernel_size: int = 7
    init_cross_embed: bool = True
    init_cross_embed_kernel_sizes: tuple[int, ...] = (3, 7, 15)
    cross_embed_downsample: bool = False
    cross_embed_downsample_kernel_sizes: tuple[int, ...] = (2, 4)
    attn_pool_text: bool = True
    attn_pool_num_latents: int = 32
    dropout: float = 0.0
    memory_efficient: bool = False
    init_conv_to_final_conv_residual: bool = False
    use_global_context_attn: bool = True
    scale_skip_connection: bool = True
    final_resnet_block: bool = True
    final_conv_kernel_size: int = 3
    self_cond: bool = False
    resize_mode: str = "nearest"
    combine_upsample_fmaps: bool = False
    pixel_shuffle_upsample: bool = True

    def __post_init__(self) -> None:
        expect(not self.cross_embed_downsample, "cross_embed_downsample must be False: the original fails with it")
        expect(self.attn_heads > 1, f"attn_heads must be at least 2, got {self.attn_heads}")
        if self.resize_mode not in RESIZE_MODES:
            raise unknown("resize_mode", self.resize_mode, RESIZE_MODES)
        expect(
            not (self.attn_pool_text and self.max_text_len > MAX_TEXT),
            f"max_text_len must be at most {MAX_TEXT} with attn_pool_text, got {self.max_text_len}",
        )
        for field in ("num_resnet_blocks", "layer_attns", "layer_attns_depth", "layer_cross_attns", "use_linear_attn",
                      "use_linear_cross_attn"):  # fmt: skip
            value = getattr(self, field)
            expect(
                not isinstance(value, tuple) or len(value) == len(self.dim_mults),
                f"{field} must have {len(self.dim_mults)} entries, as dim_mults, got {value}",
            )

    @property
    def input_channels(self) -> int:
        """Of the first convolution: x, the last result, the small picture, the picture beside them."""
        return self.channels * (1 + self.lowres_cond + self.self_cond) + self.cond_images_channels

    @property
    def stem_channels(self) -> int:
        """Of the first convolution's result."""
        return self.init_dim or self.dim

    @property
    def condition_channels(self) -> int:
        """Of the tokens that attention sees beside the pixels."""
        return self.cond_dim or self.dim

    @property
    def time_channels(self) -> int:
        """Of the embedding that all residual blocks are given."""
        return 4 * self.dim * (1 + self.lowres_cond)

    @property
    def channels_result(self) -> int:
        """Of the result."""
        return self.channels_out or self.channels

    @property
    def levels(self) -> tuple[Level, ...]:
        """From the highest resolution down."""
        channels = [self.stem_channels, *(self.dim * mult for mult in self.dim_mults)]
        return tuple(
            Level(
                in_channels=channels[level],
                out_channels=channels[level + 1],
                channels=channels[level + 1 if self.memory_efficient else level],
                blocks=_at(self.num_resnet_blocks, level),
                attention=_kind(_at(self.layer_attns, level), _at(self.use_linear_attn, level)),
                cross=_kind(
                    _at(self.layer_cross_attns, level) and not _at(self.use_linear_cross_attn, level),
                    _at(self.use_linear_cross_attn, level),
                ),
                depth=_at(self.layer_attns_depth, level),
            )
            for level in range(len(self.dim_mults))
        )


def _at(value: Value | tuple[Value, ...], level: int) -> Value:
    return value[level] if isinstance(value, tuple) else value


def _kind(full: bool, linear: bool) -> str | None:
    return "full" if full else "linear" if linear else None
