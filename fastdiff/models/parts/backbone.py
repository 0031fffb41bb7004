"""The U-Net's frame, which the model families fill with their blocks (Ho et al. 2020, DDPM, Appendix B)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.parts.attention import Context
from fastdiff.models.parts.blocks import (
    AttentionBlock,
    Conditioned,
    Downsample,
    Norm,
    ResBlock,
    Upsample,
    conv_nd,
    zero_init,
)
from fastdiff.models.parts.control import Control
from fastdiff.models.parts.reuse import Reuse
from fastdiff.models.parts.temporal import SpaceTime, per_frame
from fastdiff.models.parts.transformer import SpatialTransformer

# (place, level, index, channels) -> the attention after that residual block, or None; place: "down", "middle" or "up".
Attention = Callable[[str, int, int, int], "nn.Module | None"]
# (in_channels, out_channels) -> a residual block.
Residual = Callable[[int, int], "ResBlock | SpaceTime"]
# (level, channels) -> what changes the resolution.
Resampling = Callable[[int, int], nn.Module]


class Stage(nn.ModuleList):
    """Layers in a row, each given what it takes of the embedding, the context and the next resolution."""

    def forward(
        self, h: Tensor, embedding: Tensor | None = None, context: Context | None = None, size: torch.Size | None = None
    ) -> Tensor:
        for layer in self:
            h = apply(layer, h, embedding, context, size)
        return h


def apply(
    layer: nn.Module, h: Tensor, embedding: Tensor | None, context: Context | None, size: torch.Size | None = None
) -> Tensor:
    """layer(h) with what a layer of its kind takes. Where frames are samples of h, an embedding is of a video."""
    if isinstance(layer, Conditioned):
        return layer(h, embedding, context, size)
    frames = 1 if embedding is None else len(h) // len(embedding)
    if isinstance(layer, SpaceTime):
        return layer(h, frames, lambda part, x: apply(part, x, embedding, context, size))
    if isinstance(layer, ResBlock):
        return layer(h, embedding if embedding is None else per_frame(embedding, frames), size)
    if isinstance(layer, (AttentionBlock, SpatialTransformer)):
        return layer(h, context)
    if isinstance(layer, (Downsample, Upsample)):
        return layer(h, size)
    return layer(h)


class HalfBackbone(nn.Module):
    """The way down and the middle: (B, in_channels, H, W) -> (B, channels[-1], H / 2**n, W / 2**n), and the skips.

    channels: of each level, at half the resolution of the one before. blocks: residual blocks, one number a level.
    stem_channels: of the first convolution's result; channels[0] if not given. middle: whether there are blocks
    between the way down and the way up, and attention between those.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        residual: Residual,
        attention: Attention,
        down: Resampling,
        stem_channels: int | None = None,
        stem_kernel: int = 3,
        middle: Residual | None = None,
        has_middle: bool = True,
        dims: int = 2,
    ) -> None:
        super().__init__()
        width = channels[0] if stem_channels is None else stem_channels
        self.conv_in = conv_nd(dims, in_channels, width, stem_kernel, padding=(stem_kernel - 1) // 2)
        self.skip_channels = [width]
        stages: list[Stage] = []
        for level, out_channels in enumerate(channels):
            for index in range(blocks[level]):
                stages.append(_stage(residual(width, out_channels), attention("down", level, index, out_channels)))
                width = out_channels
                self.skip_channels.append(width)
            if level < len(channels) - 1:
                stages.append(Stage([down(level, width)]))
                self.skip_channels.append(width)
        self.down = nn.ModuleList(stages)
        self.width = width
        middle = middle or residual
        self.middle = Stage()
        if has_middle:
            self.middle = _stage(middle(width, width), attention("middle", len(channels) - 1, 0, width))
            self.middle.append(middle(width, width))

    def stem(self, x: Tensor) -> Tensor:
        """The features at full resolution that the first level starts from."""
        return self.conv_in(x)

    def run_down(
        self, x: Tensor, embedding: Tensor | None, context: Context | None = None, *, added: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The middle's result, and the skips, the first convolution's result first. added: to that result."""
        stem = self.stem(x)
        skips = [stem if added is None else stem + added]
        h = _descend(self.down, skips, embedding, context)
        return self.middle(h, embedding, context), skips


class Backbone(HalfBackbone):
    """A whole U-Net without its embeddings: (B, in_channels, H, W) -> (B, out_channels, H, W).

    norm: of the last one, before the last convolution. up_residual: the blocks of the way up, where they are others
    than those of the way down; SPADE's are given the context, a map of labels. The forward of each family passes the
    keyword arguments that are not its own on to `run`: control (ControlNet's residuals) and reuse (what
    `fastdiff.caching` keeps).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        residual: Residual,
        attention: Attention,
        down: Resampling,
        up: Resampling,
        norm: Norm,
        stem_channels: int | None = None,
        stem_kernel: int = 3,
        head_kernel: int = 3,
        middle: Residual | None = None,
        up_residual: Residual | None = None,
        has_middle: bool = True,
        dims: int = 2,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            channels=channels,
            blocks=blocks,
            residual=residual,
            attention=attention,
            down=down,
            stem_channels=stem_channels,
            stem_kernel=stem_kernel,
            middle=middle,
            has_middle=has_middle,
            dims=dims,
        )
        width, waiting = self.width, list(self.skip_channels)
        self.up = nn.ModuleList()
        up_residual = up_residual or residual
        for level in reversed(range(len(channels))):
            for index in range(blocks[level] + 1):
                block = up_residual(width + waiting.pop(), channels[level])
                width = channels[level]
                stage = _stage(block, attention("up", level, index, width))
                if level > 0 and index == blocks[level]:
                    stage.append(up(level, width))
                self.up.append(stage)
        self.norm_out = norm(width)
        self.conv_out = zero_init(conv_nd(dims, width, out_channels, head_kernel, padding=(head_kernel - 1) // 2))

    def run(
        self,
        x: Tensor,
        embedding: Tensor | None,
        context: Context | None = None,
        *,
        control: Control | None = None,
        reuse: Reuse | None = None,
    ) -> Tensor:
        """The network, given the embedding of its times after the activation. control, reuse: as of `features`."""
        h = self.features(x, embedding, context, control=control, reuse=reuse)
        return self.conv_out(self.norm_out(h, activation="silu"))

    def features(
        self,
        x: Tensor,
        embedding: Tensor | None,
        context: Context | None = None,
        *,
        control: Control | None = None,
        reuse: Reuse | None = None,
    ) -> Tensor:
        """The features at full resolution, before the last norm: (B, channels[0], H, W).

        control: added to the skips and to the middle. reuse: may take what lies below the first reuse.depth stages
        from an earlier call (Ma et al. 2024, DeepCache, Section 3.2). Raises ValueError if control's skips are not as
        many as the network's.
        """
        self.check(control)
        down, up = list(self.down), list(self.up)
        outer = len(down) if reuse is None else reuse.depth
        skips = [self.stem(x)]
        h = _descend(down[:outer], skips, embedding, context)

        def deep() -> Tensor:
            below = list(skips)
            inner = self.middle(_descend(down[outer:], below, embedding, context), embedding, context)
            if control is not None and control.middle is not None:
                inner = inner + control.middle
            return _ascend(up[: len(up) - outer - 1], inner, below, embedding, context, control)

        h = deep() if reuse is None else reuse.compute(h, deep)
        return _ascend(up[len(up) - outer - 1 :], h, skips, embedding, context, control)

    def check(self, control: Control | None) -> None:
        """Raise ValueError unless there is one residual for each skip."""
        expect(
            control is None or control.skips is None or len(control.skips) == len(self.skip_channels),
            f"control must have {len(self.skip_channels)} skips, one for each of the network's, got "
            f"{0 if control is None else len(control.skips or ())}",
        )


def _descend(
    stages: Iterable[nn.Module], skips: list[Tensor], embedding: Tensor | None, context: Context | None
) -> Tensor:
    """From the last of the skips through stages on the way down; their results join the skips."""
    for stage in stages:
        skips.append(stage(skips[-1], embedding, context))
    return skips[-1]


def _ascend(
    stages: Iterable[nn.Module],
    h: Tensor,
    skips: list[Tensor],
    embedding: Tensor | None,
    context: Context | None,
    control: Control | None,
) -> Tensor:
    """From h through stages on the way up, each of which takes the last of the skips away."""
    for stage in stages:
        skip = take(skips, control)
        size = (skips[-1] if skips else skip).shape[2:]
        h = stage(torch.cat([h, skip], dim=1), embedding, context, size)
    return h


def take(skips: list[Tensor], control: Control | None) -> Tensor:
    """The last of the skips, taken from the list, with what control adds to it."""
    skip = skips.pop()
    return skip if control is None or control.skips is None else skip + control.skips[len(skips)]


def _stage(*layers: nn.Module | None) -> Stage:
    return Stage([layer for layer in layers if layer is not None])
