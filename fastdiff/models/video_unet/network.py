"""A U-Net for videos whose attention alternates between pixels and frames. Ho et al. 2022, Video Diffusion Models."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.parts.blocks import embedding_dtype, timestep_embedding
from fastdiff.models.parts.reuse import Reuse
from fastdiff.models.parts.rms import RMSResBlock
from fastdiff.models.parts.temporal import Clip, RelativePositionBias, per_frame, to_frames, to_video
from fastdiff.models.video_unet.blocks import LinearAttention, Spatial, Temporal

_BERT = 768  # channels of a text's embedding with use_bert_text_cond


@dataclass(frozen=True)
class Unet3DConfig:
    """The arguments of video-diffusion-pytorch's `Unet3D`, with its names and defaults.

    dim: channels of the first level; those of the others are dim times dim_mults. cond_dim: of a condition, None for a
    network without; 768 with use_bert_text_cond. attn_dim_head: channels of a head of the attention among frames.
    use_sparse_linear_attn: linear attention among the pixels of each level. init_dim: dim, the only value with which
    the original runs. block_type: has no effect.
    """

    dim: int
    cond_dim: int | None = None
    out_dim: int | None = None
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    channels: int = 3
    attn_heads: int = 8
    attn_dim_head: int = 32
    use_bert_text_cond: bool = False
    init_dim: int | None = None
    init_kernel_size: int = 7
    use_sparse_linear_attn: bool = True
    block_type: str = "resnet"

    def __post_init__(self) -> None:
        expect(self.init_dim in (None, self.dim), f"init_dim must be dim ({self.dim}) or None, got {self.init_dim}")
        expect(self.init_kernel_size % 2 == 1, f"init_kernel_size must be odd, got {self.init_kernel_size}")
        expect(self.dim % 2 == 0, f"dim must be even, got {self.dim}")

    @property
    def condition(self) -> int | None:
        """Channels of the condition."""
        return _BERT if self.use_bert_text_cond else self.cond_dim


class Unet3D(nn.Module):
    """`model(x, t, cond)` -> (B, out_dim, F, H, W).

    x: (B, channels, F, H, W), H and W divisible by 2 ** (len(dim_mults) - 1). t: (B,) training times, fractional ones
    included. cond: (B, cond_dim), `unconditional(B)` for none of it. null_cond_prob: how often a sample's condition is
    replaced by that, as in training.

    focus_present_mask: (B,) boolean, True where each frame sees itself alone, as in training on pictures and videos
    together (Section 3.1 of the paper); prob_focus_present: how often that is so for samples, if no mask is given.
    reuse: see `fastdiff.caching`. Raises ValueError where these do not fit.
    """

    frequencies: Tensor

    def __init__(self, config: Unet3DConfig) -> None:
        super().__init__()
        self.config = config
        dim, heads, kernel = config.dim, config.attn_heads, config.init_kernel_size
        widths = [dim, *(dim * multiple for multiple in config.dim_mults)]
        embedding = 4 * dim + (config.condition or 0)
        rotated = min(32, config.attn_dim_head)
        steps = torch.arange(0, rotated, 2)[: rotated // 2].float()
        self.register_buffer("frequencies", 1.0 / 10_000 ** (steps / rotated))
        self.bias = RelativePositionBias(heads)
        self.stem = nn.Conv2d(config.channels, dim, kernel, padding=kernel // 2)
        self.stem_attention = Temporal(dim, heads, config.attn_dim_head)
        self.time_embedding = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, 4 * dim))
        self.null_cond = None if config.condition is None else nn.Parameter(torch.randn(1, config.condition))

        def level(in_channels: int, out_channels: int, resample: nn.Module | None) -> Level:
            return Level(config, in_channels, out_channels, embedding, resample)

        last, self.down, self.up = len(widths) - 2, nn.ModuleList(), nn.ModuleList()
        for index, (narrow, wide) in enumerate(pairwise(widths)):
            halve = nn.Conv2d(wide, wide, 4, stride=2, padding=1) if index < last else None
            self.down.append(level(narrow, wide, halve))
        for index, (narrow, wide) in enumerate(zip(widths[-2::-1], widths[:0:-1])):
            double = nn.ConvTranspose2d(narrow, narrow, 4, stride=2, padding=1) if index < last else None
            self.up.append(level(2 * wide, narrow, double))
        self.middle = Middle(config, widths[-1], embedding)
        self.final = RMSResBlock(2 * dim, dim, None)
        self.conv_out = nn.Conv2d(dim, config.out_dim or config.channels, 1)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Tensor | None = None,
        *,
        null_cond_prob: float = 0.0,
        focus_present_mask: Tensor | None = None,
        prob_focus_present: float = 0.0,
        reuse: Reuse | None = None,
    ) -> Tensor:
        self._check(x, t, cond, focus_present_mask)
        frames = x.shape[2]
        if focus_present_mask is None:
            focus_present_mask = _drawn(prob_focus_present, x)
        position = torch.arange(frames, device=x.device, dtype=embedding_dtype(x))
        angles = position[:, None] * self.frequencies.to(position.dtype)
        clip = Clip(frames, self.bias(frames), angles, focus_present_mask)
        embedding = per_frame(F.silu(self._embed(x, t, cond, null_cond_prob)), frames)
        stem = self.stem_attention(self.stem(to_frames(x)), clip._replace(focus=None))
        outer = len(self.down) if reuse is None else reuse.depth
        h, skips = _descend(self.down[:outer], stem, embedding, clip)

        def deep() -> Tensor:
            inner, below = _descend(self.down[outer:], h, embedding, clip)
            return _ascend(self.up[: len(self.up) - outer], self.middle(inner, embedding, clip), below, embedding, clip)

        h = deep() if reuse is None else reuse.compute(h, deep)
        h = _ascend(self.up[len(self.up) - outer :], h, skips, embedding, clip)
        return to_video(self.conv_out(self.final(torch.cat([h, stem], dim=1))), frames)

    def unconditional(self, batch: int) -> Tensor:
        """The condition of samples without one, (batch, cond_dim). Raises ValueError for a network without any."""
        if self.null_cond is None:
            raise ValueError("the network takes no condition")
        return self.null_cond.expand(batch, -1)

    def forward_with_cond_scale(
        self, x: Tensor, t: Tensor, cond: Tensor | None = None, *, cond_scale: float = 2.0, **options: Tensor | float
    ) -> Tensor:
        """Classifier-free guidance as the original has it: null + cond_scale (out - null)."""
        out = self(x, t, cond, **options)
        if cond_scale == 1 or self.null_cond is None:
            return out
        null = self(x, t, self.unconditional(len(x)), **options)
        return null + cond_scale * (out - null)

    def _embed(self, x: Tensor, t: Tensor, cond: Tensor | None, null_cond_prob: float) -> Tensor:
        """Of time and condition, (B, 4 dim + cond_dim)."""
        features = timestep_embedding(t.to(embedding_dtype(x)), self.config.dim, sin_first=True, shift=1.0)
        embedding = self.time_embedding(features.to(x.dtype))
        if self.null_cond is None or cond is None:
            return embedding
        dropped, cond = _drawn(null_cond_prob, x), cond.to(x.dtype)
        if dropped is not None:
            cond = torch.where(dropped[:, None], self.null_cond, cond)
        return torch.cat([embedding, cond], dim=1)

    def _check(self, x: Tensor, t: Tensor, cond: Tensor | None, focus: Tensor | None) -> None:
        channels, condition = self.config.channels, self.config.condition
        multiple = 2 ** (len(self.config.dim_mults) - 1)
        expect(
            x.ndim == 5 and x.shape[1] == channels and x.shape[3] % multiple == x.shape[4] % multiple == 0,
            f"x must be (B, {channels}, F, H, W) with H and W divisible by {multiple}, got {tuple(x.shape)}",
        )
        expect(t.shape == x.shape[:1], f"t must be ({len(x)},), one time a sample, got {tuple(t.shape)}")
        expect(condition is not None or cond is None, "cond was given, but the network takes no condition")
        got = None if cond is None else tuple(cond.shape)
        expect(condition is None or got == (len(x), condition), f"cond must be ({len(x)}, {condition}), got {got}")
        expect(
            focus is None or (focus.shape == t.shape and focus.dtype is torch.bool),
            f"focus_present_mask must be ({len(x)},) and boolean, got "
            f"{None if focus is None else (tuple(focus.shape), focus.dtype)}",
        )


class Level(nn.Module):
    """Two residual blocks, linear attention among pixels, attention among frames; `resample` is for the caller."""

    def __init__(
        self, config: Unet3DConfig, in_channels: int, out_channels: int, embedding: int, resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.block1 = RMSResBlock(in_channels, out_channels, embedding)
        self.block2 = RMSResBlock(out_channels, out_channels, embedding)
        linear = config.use_sparse_linear_attn
        self.spatial = LinearAttention(out_channels, config.attn_heads) if linear else nn.Identity()
        self.temporal = Temporal(out_channels, config.attn_heads, config.attn_dim_head)
        self.resample = nn.Identity() if resample is None else resample

    def forward(self, h: Tensor, embedding: Tensor, clip: Clip) -> Tensor:
        return self.temporal(self.spatial(self.block2(self.block1(h, embedding), embedding)), clip)


class Middle(nn.Module):
    """Residual blocks around attention among pixels and among frames."""

    def __init__(self, config: Unet3DConfig, channels: int, embedding: int) -> None:
        super().__init__()
        self.block1 = RMSResBlock(channels, channels, embedding)
        self.spatial = Spatial(channels, config.attn_heads)
        self.temporal = Temporal(channels, config.attn_heads, config.attn_dim_head)
        self.block2 = RMSResBlock(channels, channels, embedding)

    def forward(self, h: Tensor, embedding: Tensor, clip: Clip) -> Tensor:
        return self.block2(self.temporal(self.spatial(self.block1(h, embedding)), clip), embedding)


def _drawn(probability: float, x: Tensor) -> Tensor | None:
    """(B,) boolean, True as often as that; None for never."""
    if probability == 0:
        return None
    return torch.rand(len(x), device=x.device) < probability


def _descend(levels: nn.ModuleList, h: Tensor, embedding: Tensor, clip: Clip) -> tuple[Tensor, list[Tensor]]:
    """Through levels on the way down; what each gave before it was halved, too."""
    skips = []
    for level in levels:
        assert isinstance(level, Level)
        h = level(h, embedding, clip)
        skips.append(h)
        h = level.resample(h)
    return h, skips


def _ascend(levels: nn.ModuleList, h: Tensor, skips: list[Tensor], embedding: Tensor, clip: Clip) -> Tensor:
    """Through levels on the way up, each of which takes the last of the skips away."""
    for level in levels:
        assert isinstance(level, Level)
        h = level.resample(level(torch.cat([h, skips.pop()], dim=1), embedding, clip))
    return h
