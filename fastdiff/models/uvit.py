"""U-ViT: a vision transformer with the skip connections of a U-Net, time and condition among its tokens. Bao et al.
2023, All are Worth Words: A ViT Backbone for Diffusion Models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.parts.attention import attend, split_heads
from fastdiff.models.parts.blocks import embedding_dtype, mlp, timestep_embedding
from fastdiff.models.parts.reuse import Reuse


@dataclass(frozen=True)
class UViTConfig:
    """The arguments of both classes `UViT` of the original code, with its names and defaults.

    img_size: pixels (of the latent) a side. depth: blocks but for the middle one, half of them on either side.
    qk_scale: of the scores, 1 / sqrt(channels of a head) if None. mlp_time_embed: two layers after the sinusoidal
    embedding of the time. num_classes: classes, "none" among them; not positive for a network without. clip_dim,
    num_clip_token: of the text (uvit_t2i.py); None for a network without. conv: a 3 x 3 convolution at the end. skip:
    long skip connections.
    """

    img_size: int = 224
    patch_size: int = 16
    in_chans: int = 3
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    qk_scale: float | None = None
    mlp_time_embed: bool = False
    num_classes: int = -1
    clip_dim: int | None = None
    num_clip_token: int | None = None
    conv: bool = True
    skip: bool = True

    def __post_init__(self) -> None:
        for field, of in (("img_size", "patch_size"), ("embed_dim", "num_heads")):
            value, unit = getattr(self, field), getattr(self, of)
            expect(value % unit == 0, f"{field} must be a multiple of {of}, got {value} and {unit}")
        given = [self.clip_dim is not None, self.num_clip_token is not None, self.num_classes > 0]
        expect(given[0] == given[1], "clip_dim and num_clip_token must be given together")
        expect(sum(given[1:]) <= 1, "a UViT has classes (num_classes) or a text (clip_dim), not both")

    @property
    def side(self) -> int:
        """Patches a side."""
        return self.img_size // self.patch_size

    @property
    def extras(self) -> int:
        """Tokens before those of the patches."""
        return 1 + (self.num_clip_token or 0) + (self.num_classes > 0)


class UViT(nn.Module):
    """`model(x, t, y)` or `model(x, t, context=context)` -> (B, in_chans, img_size, img_size).

    x: (B, in_chans, img_size, img_size). t: (B,) training times, in the published checkpoints up to 1000, fractional
    ones included. y: (B,) int64 classes in [0, num_classes). context: (B, num_clip_token, clip_dim), the text encoder's
    tokens. reuse: see `fastdiff.caching`. Raises ValueError where these do not fit.
    """

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.embed_dim, config.patch_size
        self.patches = nn.Conv2d(config.in_chans, width, patch, stride=patch)
        self.time_embedding = mlp(width, 4 * width, width) if config.mlp_time_embed else nn.Identity()
        self.class_embedding = nn.Embedding(config.num_classes, width) if config.num_classes > 0 else None
        self.context_embedding = None if config.clip_dim is None else nn.Linear(config.clip_dim, width)
        self.positions = nn.Parameter(torch.zeros(1, config.extras + config.side**2, width))
        half = config.depth // 2
        self.down = nn.ModuleList(Block(config) for _ in range(half))
        self.middle = Block(config)
        self.up = nn.ModuleList(Block(config, skip=config.skip) for _ in range(half))
        self.norm = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, patch**2 * config.in_chans)
        self.conv_out = nn.Conv2d(config.in_chans, config.in_chans, 3, padding=1) if config.conv else nn.Identity()
        self._initialize()

    def _initialize(self) -> None:
        nn.init.trunc_normal_(self.positions, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        context: Tensor | None = None,
        *,
        reuse: Reuse | None = None,
    ) -> Tensor:
        self._check(x, t, y, context)
        extras = self._extras(x, t, y, context)
        h = self.patches(x).flatten(2).transpose(1, 2)  # (B, S, C)
        h = torch.cat([*extras, h], dim=1) + self.positions
        outer = len(self.down) if reuse is None else min(reuse.depth, len(self.down))
        h, skips = _descend(self.down[:outer], h)

        def deep() -> Tensor:
            inner, below = _descend(self.down[outer:], h)
            return _ascend(self.up[: len(self.up) - outer], self.middle(inner), below)

        h = deep() if reuse is None else reuse.compute(h, deep)
        h = _ascend(self.up[len(self.up) - outer :], h, skips)
        h = self.proj_out(self.norm(h[:, self.config.extras :]))
        return self.conv_out(self._unpatchify(h))

    def _extras(self, x: Tensor, t: Tensor, y: Tensor | None, context: Tensor | None) -> list[Tensor]:
        """The tokens of the condition and of the time, each (B, S, C): a class comes before the time, a text after."""
        features = timestep_embedding(t.to(embedding_dtype(x)), self.config.embed_dim).to(x.dtype)
        time = self.time_embedding(features)[:, None]
        if self.class_embedding is not None and y is not None:
            return [self.class_embedding(y.to(x.device))[:, None], time]
        if self.context_embedding is not None and context is not None:
            return [time, self.context_embedding(context)]
        return [time]

    def _unpatchify(self, h: Tensor) -> Tensor:
        """(B, S, patch^2 channels) -> (B, channels, H, W); channels are innermost."""
        patch, side, size = self.config.patch_size, self.config.side, self.config.img_size
        h = h.reshape(len(h), side, side, patch, patch, self.config.in_chans)
        return h.permute(0, 5, 1, 3, 2, 4).reshape(len(h), self.config.in_chans, size, size)

    def _check(self, x: Tensor, t: Tensor, y: Tensor | None, context: Tensor | None) -> None:
        config = self.config
        shape = (config.in_chans, config.img_size, config.img_size)
        expect(x.shape[1:] == shape, f"x must be (B, {', '.join(map(str, shape))}), got {tuple(x.shape)}")
        expect(t.shape == x.shape[:1], f"t must be ({len(x)},), one time a sample, got {tuple(t.shape)}")
        got = {"y": y, "context": context}
        for name, wanted, takes in (
            ("y", (len(x),), self.class_embedding is not None),
            ("context", (len(x), config.num_clip_token, config.clip_dim), self.context_embedding is not None),
        ):
            value = got[name]
            if not takes:
                expect(value is None, f"{name} was given, but the model takes none")
            elif value is None or tuple(value.shape) != wanted:
                raise ValueError(f"{name} must be {wanted}, got {None if value is None else tuple(value.shape)}")


class Block(nn.Module):
    """Attention among the tokens and two layers, each on a norm and with a residual: (B, S, C) -> (B, S, C).

    skip: a linear map of the tokens and of those of an earlier block comes first.
    """

    def __init__(self, config: UViTConfig, *, skip: bool = False) -> None:
        super().__init__()
        width = config.embed_dim
        self.num_heads = config.num_heads
        size = width // config.num_heads
        self.factor = None if config.qk_scale is None else config.qk_scale * size**0.5  # of q, beside 1 / sqrt(size)
        self.skip = nn.Linear(2 * width, width) if skip else None
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        inner = int(width * config.mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip is not None and skip is not None:
            x = self.skip(torch.cat([x, skip], dim=-1))
        q, k, v = split_heads(self.qkv(self.norm1(x)), 3, self.num_heads)
        if self.factor is not None:
            q = q * self.factor
        x = x + self.proj(attend(q, k, v, layer=self, kind="self"))
        return x + self.mlp(self.norm2(x))


def _descend(blocks: nn.ModuleList, h: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Through blocks on the way down; all their results too."""
    skips = []
    for block in blocks:
        h = block(h)
        skips.append(h)
    return h, skips


def _ascend(blocks: nn.ModuleList, h: Tensor, skips: list[Tensor]) -> Tensor:
    """Through blocks on the way up, each of which takes the last of the skips away."""
    for block in blocks:
        h = block(h, skips.pop())
    return h
