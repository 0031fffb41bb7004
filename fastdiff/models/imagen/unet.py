"""Imagen's U-Net, base and efficient (Saharia et al. 2022, Sections 2.3 and 2.4, Appendices B.1 and D.3)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.imagen.blocks import Combine, CrossEmbed, Nearest, Parallel, PixelShuffle, ResidualBlock, resize
from fastdiff.models.imagen.conditioning import TextConditioning, TimeConditioning
from fastdiff.models.imagen.config import ImagenConfig, Level
from fastdiff.models.imagen.transformer import LinearTransformer, Transformer
from fastdiff.models.parts.attention import Context
from fastdiff.models.parts.backbone import Backbone, Control, Stage, apply, take
from fastdiff.models.parts.blocks import zero_init
from fastdiff.models.parts.reuse import Reuse


class ImagenUNet(Backbone):
    """Noise-prediction network: `model(x, t, text, mask, ...)` -> (B, channels_out, H, W).

    x: (B, channels, H, W), H and W divisible by the number of pixels that the halvings make one of. t: (B,) logarithms
    of the signal-to-noise ratio, log(alpha^2 / sigma^2). text: (B, S, text_embed_dim), T5's; None for a call without.
    mask: (B, S) boolean, False for padding. keep_text: (B,) boolean, False where the text is replaced by what was
    learned for none, as in the unconditional calls of guidance. low_res: (B, channels, H, W), the small picture with
    noise, enlarged, and low_res_t: (B,) its log ratio, for a model with lowres_cond. cond_images: (B,
    cond_images_channels, h, w). self_cond: in x's shape, the last result; zeros if not given.

    There is no skip from the first convolution: what a control has for it is not used. Raises ValueError where these do
    not fit.
    """

    def __init__(self, config: ImagenConfig) -> None:
        nn.Module.__init__(self)  # the frame is a backbone's, its layers are not
        self.config = config
        stem, dim = config.stem_channels, config.dim
        self.conv_in = (
            CrossEmbed(config.input_channels, stem, config.init_cross_embed_kernel_sizes)
            if config.init_cross_embed
            else nn.Conv2d(
                config.input_channels, stem, config.init_conv_kernel_size, padding=config.init_conv_kernel_size // 2
            )
        )
        self.time = TimeConditioning(config)
        self.low_res_time = TimeConditioning(config) if config.lowres_cond else None
        self.text = TextConditioning(config) if config.cond_on_text else None
        self.norm_context = nn.LayerNorm(config.condition_channels)
        self._make_stages()
        self.combine = None
        width = config.levels[0].in_channels if config.memory_efficient else config.levels[0].out_channels
        if config.combine_upsample_fmaps:
            widths = [level.out_channels for level in reversed(config.levels)]
            self.combine = Combine(widths, dim)
            width += dim * len(widths)
        width += stem if config.init_conv_to_final_conv_residual else 0
        self.final: ResidualBlock | None = None
        if config.final_resnet_block:
            self.final = ResidualBlock(width, dim, time_channels=config.time_channels, gated=True)
            width = dim
        width += config.channels if config.lowres_cond else 0
        kernel = config.final_conv_kernel_size
        self.conv_out = zero_init(nn.Conv2d(width, config.channels_result, kernel, padding=kernel // 2))

    def _make_stages(self) -> None:
        """One stage for each skip: down, the first layers of a level before its first residual block, then one for each
        further block, and the attention; up the same way round, with what doubles the resolution in the last one."""
        config, gated = self.config, self.config.use_global_context_attn
        time, context = config.time_channels, config.condition_channels

        def first(level: Level, in_channels: int, channels: int) -> ResidualBlock:
            return ResidualBlock(
                in_channels,
                channels,
                time_channels=time,
                context_channels=context,
                cross=level.cross,
                num_heads=config.attn_heads,
                head_channels=config.attn_dim_head,
            )

        def block(in_channels: int, channels: int) -> ResidualBlock:
            return ResidualBlock(in_channels, channels, time_channels=time, gated=gated)

        def attention(level: Level, channels: int) -> nn.Module:
            if level.attention is None:
                return nn.Identity()
            kind = Transformer if level.attention == "full" else LinearTransformer
            sizes = (channels, config.attn_heads, config.attn_dim_head)
            return kind(*sizes, depth=level.depth, mult=config.ff_mult, context_channels=context)

        down: list[Stage] = []
        up: list[Stage] = []
        self.skip_channels = [config.stem_channels]
        waiting: list[nn.Module] = []
        if config.memory_efficient:
            waiting.append(block(config.stem_channels, config.stem_channels))
        for index, level in enumerate(config.levels):
            width = level.channels
            if config.memory_efficient:
                waiting.append(halving(level.in_channels, width))
            waiting.append(first(level, width, width))
            for _ in range(level.blocks):
                down.append(Stage([*waiting, block(width, width)]))
                waiting = []
            down.append(Stage([*waiting, attention(level, width)]))
            waiting = []
            self.skip_channels += [width] * (level.blocks + 1)
            if not config.memory_efficient:
                last = index == len(config.levels) - 1
                waiting.append((Parallel if last else halving)(width, level.out_channels))
        width = config.levels[-1].out_channels

        def middle() -> ResidualBlock:
            return ResidualBlock(width, width, time_channels=time, context_channels=context, cross="full")

        waiting.append(middle())
        if config.attend_at_middle:
            sizes = (width, config.attn_heads, config.attn_dim_head)
            waiting.append(Transformer(*sizes, depth=config.layer_mid_attns_depth))
        self.middle = Stage([*waiting, middle()])
        doubling = PixelShuffle if config.pixel_shuffle_upsample else Nearest
        for index, level in reversed(list(enumerate(config.levels))):
            width, both = level.out_channels, level.out_channels + level.channels
            layers = [first(level, both, width), *(block(both, width) for _ in range(level.blocks))]
            doubles = index > 0 or config.memory_efficient
            end = doubling(width, level.in_channels) if doubles else nn.Identity()
            up += [Stage([layer]) for layer in layers[:-1]]
            up.append(LevelEnd([layers[-1], attention(level, width), end]))
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        keep_text: Tensor | None = None,
        low_res: Tensor | None = None,
        low_res_t: Tensor | None = None,
        cond_images: Tensor | None = None,
        self_cond: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        inputs = self._inputs(x, low_res, cond_images, self_cond)
        embedding, tokens = self.time(x, t, "t")
        if self.low_res_time is not None:
            if low_res_t is None:
                raise ValueError("low_res_t must be given to a model with lowres_cond")
            more, more_tokens = self.low_res_time(x, low_res_t, "low_res_t")
            embedding, tokens = embedding + more, torch.cat([tokens, more_tokens], dim=1)
        if self.text is not None and text is not None:
            more, more_tokens = self.text(x, text, mask, keep_text)
            embedding, tokens = embedding + more, torch.cat([tokens, more_tokens], dim=1)
        else:
            expect(text is None, "text was given, but the model has no cond_on_text")
        h = self.features(inputs, F.silu(embedding), self.norm_context(tokens), **options)
        return self.conv_out(h if low_res is None else torch.cat([h, low_res], dim=1))

    def features(
        self,
        x: Tensor,
        embedding: Tensor | None,
        context: Context | None = None,
        *,
        control: Control | None = None,
        reuse: Reuse | None = None,
    ) -> Tensor:
        self.check(control)
        if reuse is not None and self.combine is not None:
            raise ValueError("reuse is for models without combine_upsample_fmaps, whose end sees every level")
        down, up = list(self.down), list(self.up)
        outer = len(down) if reuse is None else reuse.depth
        scale = 0.5**0.5 if self.config.scale_skip_connection else 1.0
        maps: list[Tensor] = []  # of each level on the way up, before its resolution changes
        stem = self.stem(x)

        def descend(stages: list[nn.Module], h: Tensor, skips: list[Tensor]) -> Tensor:
            for stage in stages:
                h = stage(h, embedding, context)
                skips.append(h * scale)
            return h

        def ascend(stages: list[nn.Module], h: Tensor, skips: list[Tensor]) -> Tensor:
            for stage in stages:
                h = torch.cat([h, take(skips, control)], dim=1)
                if isinstance(stage, LevelEnd):
                    h = stage.before(h, embedding, context)
                    maps.append(h)
                    h = stage[-1](h)
                else:
                    h = stage(h, embedding, context)
            return h

        skips = [stem]
        h = descend(down[:outer], stem, skips)

        def deep() -> Tensor:
            below = list(skips)
            inner = self.middle(descend(down[outer:], h, below), embedding, context)
            if control is not None and control.middle is not None:
                inner = inner + control.middle
            return ascend(up[: len(up) - outer], inner, below)

        result = deep() if reuse is None else reuse.compute(h, deep)
        result = ascend(up[len(up) - outer :], result, skips)
        if self.combine is not None:
            result = self.combine(result, maps)
        if self.config.init_conv_to_final_conv_residual:
            result = torch.cat([result, stem], dim=1)
        return result if self.final is None else self.final(result, embedding)

    def _inputs(
        self, x: Tensor, low_res: Tensor | None, cond_images: Tensor | None, self_cond: Tensor | None
    ) -> Tensor:
        """All pictures that the network sees, (B, input_channels, H, W)."""
        config = self.config
        multiple = 2 ** (len(config.levels) - (not config.memory_efficient))
        expect(
            x.ndim == 4 and x.shape[1] == config.channels and x.shape[2] % multiple == x.shape[3] % multiple == 0,
            f"x must be (B, {config.channels}, H, W) with H and W divisible by {multiple}, got {tuple(x.shape)}",
        )
        for name, value, field in (("low_res", low_res, "lowres_cond"), ("self_cond", self_cond, "self_cond")):
            expect(value is None or getattr(config, field), f"{name} was given, but the model has no {field}")
            expect(
                value is None or value.shape == x.shape,
                f"{name} must be {tuple(x.shape)}, as x, got {None if value is None else tuple(value.shape)}",
            )
        inputs = [x]
        if config.self_cond:
            inputs.append(torch.zeros_like(x) if self_cond is None else self_cond)
        if config.lowres_cond:
            if low_res is None:
                raise ValueError("low_res must be given to a model with lowres_cond")
            inputs.append(low_res)
        channels = config.cond_images_channels
        given = 0 if cond_images is None else cond_images.shape[1]
        expect(given == channels, f"cond_images must have {channels} channels, got {given}")
        if cond_images is not None:
            inputs.insert(0, resize(cond_images, x, config.resize_mode))
        return torch.cat(inputs, dim=1)


class LevelEnd(Stage):
    """The last stage of a level on the way up, whose last layer changes the resolution."""

    def before(self, h: Tensor, embedding: Tensor | None, context: Context | None) -> Tensor:
        """Without the last layer."""
        for layer in list(self)[:-1]:
            h = apply(layer, h, embedding, context)
        return h


def halving(in_channels: int, out_channels: int) -> nn.Module:
    """Halve the resolution: a pixel unshuffle and a 1 x 1 convolution (Sunkara & Luo 2022), as one convolution."""
    return nn.Conv2d(in_channels, out_channels, 2, stride=2)
