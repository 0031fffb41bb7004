"""Diffusion transformers. Peebles & Xie 2023, Scalable Diffusion Models with Transformers (DiT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.errors import expect, unknown
from fastdiff.models.parts.attention import attend, split_heads
from fastdiff.models.parts.blocks import timestep_embedding, zero_init
from fastdiff.models.parts.reuse import Reuse

# depth, width, heads: Table 1 of the paper
SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
BLOCKS = ("adaln-zero", "adaln", "cross-attention", "in-context")
_FREQUENCIES = 256  # of the embedding of times


@dataclass(frozen=True)
class DiTConfig:
    """The shape of a `DiT`; names and defaults are those of the original code.

    input_size: pixels (of the latent) a side. learn_sigma: twice the channels come out, the second half for the
    variance. class_dropout_prob: how often training replaces a class by "none", which is class num_classes; without
    dropout there is no such class. block: how time and class condition the blocks (Section 3.2), one of BLOCKS.

    The others say where implementations differ: out_channels, if it is not what learn_sigma says. shared_embedders:
    False where each block embeds time and class by weights of its own. time_shift: see `timestep_embedding`. mlp_eps:
    of the norm before the MLP. mlp_norm_affine: whether it has weights beside the modulation. qkv_bias. gelu: "tanh" or
    "none", the approximation.
    """

    input_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    class_dropout_prob: float = 0.1
    num_classes: int = 1000
    learn_sigma: bool = True
    block: str = "adaln-zero"
    out_channels: int | None = None
    shared_embedders: bool = True
    time_shift: float = 0.0
    mlp_eps: float = 1e-6
    mlp_norm_affine: bool = False
    qkv_bias: bool = True
    gelu: str = "tanh"

    def __post_init__(self) -> None:
        if self.block not in BLOCKS:
            raise unknown("block", self.block, BLOCKS)
        for field, unit, of in (("input_size", "patch_size", self.patch_size), ("hidden_size", "4", 4),
                                ("hidden_size", "num_heads", self.num_heads)):  # fmt: skip
            value = getattr(self, field)
            expect(value % of == 0, f"{field} must be a multiple of {unit}, got {value} and {of}")

    @classmethod
    def of(cls, name: str, **changes: object) -> DiTConfig:
        """The config of a published size, e.g. of("DiT-XL/2", input_size=64). Raises ValueError for other names."""
        known = [f"DiT-{size}/{patch}" for size in SIZES for patch in (2, 4, 8)]
        if name not in known:
            raise unknown("size of DiT", name, known)
        size, patch = name.removeprefix("DiT-").split("/")
        depth, width, heads = SIZES[size]
        fields = {"depth": depth, "hidden_size": width, "num_heads": heads, "patch_size": int(patch), **changes}
        return cls(**fields)  # type: ignore[arg-type]

    @property
    def side(self) -> int:
        """Tokens a side."""
        return self.input_size // self.patch_size

    @property
    def channels_out(self) -> int:
        """Channels of the output."""
        return self.out_channels or (2 if self.learn_sigma else 1) * self.in_channels

    @property
    def adaptive(self) -> bool:
        """Whether norms are modulated by time and class."""
        return self.block in ("adaln-zero", "adaln")


class DiT(nn.Module):
    """`model(x, t, y)` -> (B, channels out, H, W), with learn_sigma the noise and then the variance.

    x: (B, in_channels, input_size, input_size). t: (B,) training times, fractional ones included. y: (B,) int64 classes
    in [0, num_classes]. reuse: see `run_blocks`. Raises ValueError where these do not fit.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        self.patches = nn.Conv2d(config.in_channels, width, patch, stride=patch)
        self.register_buffer("positions", sincos_positions(width, config.side)[None])
        embedders = 1 if config.shared_embedders else config.depth
        self.conditioning = nn.ModuleList([Conditioning(config) for _ in range(embedders)])
        self.blocks = nn.ModuleList([_BLOCKS[config.block](config) for _ in range(config.depth)])
        self.final = FinalLayer(config)
        self._initialize()

    def _initialize(self) -> None:
        """Section 3.2 and the original code: blocks of adaLN-Zero begin as the identity, the output as zero."""
        for layer in reversed(list(self.modules())):  # a module after the layers in it
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(layer.weight.flatten(1))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            elif isinstance(layer, Conditioning):
                layer.initialize()
            elif isinstance(layer, AdaLNZeroBlock):
                zero_init(layer.modulation)
        if self.final.modulation is not None:
            zero_init(self.final.modulation)
        zero_init(self.final.linear)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, reuse: Reuse | None = None) -> Tensor:
        self._check(x, t, y)
        t = t.to(torch.promote_types(x.dtype, torch.float32))  # half precisions have no room for 999
        y = y.to(x.device)
        if self.training and self.config.class_dropout_prob > 0:
            dropped = torch.rand(y.shape, device=y.device) < self.config.class_dropout_prob
            y = torch.where(dropped, self.config.num_classes, y)
        conditions = [embed(t, y, x.dtype) for embed in self.conditioning]
        if self.config.adaptive:
            first, *others = (F.silu(time + label)[:, None] for time, label in conditions)  # (B, 1, C)
        else:
            first, *others = (torch.stack(pair, dim=1) for pair in conditions)  # (B, 2, C)

        h = self.patches(x).flatten(2).transpose(1, 2) + self.positions  # (B, S, C)
        tokens = h.shape[1]
        if self.config.block == "in-context":
            h = torch.cat([h, first], dim=1)
        h = self.run_blocks(h, [first, *others] if others else [first] * len(self.blocks), reuse)
        return self._unpatchify(self.final(h[:, :tokens], first))

    def run_blocks(self, h: Tensor, conditions: list[Tensor], reuse: Reuse | None = None) -> Tensor:
        """All blocks, each with its condition: (B, S, C) -> (B, S, C).

        reuse: may take what the blocks after the first reuse.depth add to h from an earlier call (the residuals of Chen
        et al. 2024, Delta-DiT, Section 4.1, over all these blocks).
        """
        blocks = list(zip(self.blocks, conditions))
        if reuse is None:
            return _through(blocks, h)
        outer = _through(blocks[: reuse.depth], h)
        fresh: list[Tensor] = []

        def added() -> Tensor:
            fresh.append(_through(blocks[reuse.depth :], outer))
            return fresh[0] - outer

        residual = reuse.compute(outer, added)
        return fresh[0] if fresh else outer + residual  # a full call without the rounding of the residual

    def forward_with_cfg(self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float, *, channels: int = 3) -> Tensor:
        """Classifier-free guidance as the published pictures were made (Ho & Salimans 2022, Eq. 6).

        y: classes for the first half of the batch, and num_classes ("none") for the second; of x the first half is
        taken twice. channels: those that are guided, the first three of the four in the original code; in the others,
        and in the variance, either half keeps its own. Both halves of the result are for the first half of x.
        """
        expect(len(x) % 2 == 0, f"x must hold an even number of samples, got {len(x)}")
        half = x[: len(x) // 2]
        out = self(torch.cat([half, half]), t, y)
        given, none = out[:, :channels].chunk(2)
        guided = none + cfg_scale * (given - none)
        return torch.cat([torch.cat([guided, guided]), out[:, channels:]], dim=1)

    def _unpatchify(self, h: Tensor) -> Tensor:
        """(B, S, patch^2 channels) -> (B, channels, H, W); channels are innermost."""
        patch, side = self.config.patch_size, self.config.side
        h = h.reshape(len(h), side, side, patch, patch, self.config.channels_out)
        size = self.config.input_size
        return h.permute(0, 5, 1, 3, 2, 4).reshape(len(h), self.config.channels_out, size, size)

    def _check(self, x: Tensor, t: Tensor, y: Tensor) -> None:
        size, channels = self.config.input_size, self.config.in_channels
        expect(
            x.shape[1:] == (channels, size, size), f"x must be (B, {channels}, {size}, {size}), got {tuple(x.shape)}"
        )
        expect(t.shape == x.shape[:1], f"t must be ({len(x)},), one time a sample, got {tuple(t.shape)}")
        expect(y.shape == x.shape[:1], f"y must be ({len(x)},), one class a sample, got {tuple(y.shape)}")


class Conditioning(nn.Module):
    """Embeddings of time and class: (B,), (B,) -> (B, C), (B, C)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.shift = config.time_shift
        self.time = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.Embedding(config.num_classes + (config.class_dropout_prob > 0), width)

    def initialize(self) -> None:
        """Narrower than other layers."""
        for layer in (self.time[0], self.time[2], self.classes):
            nn.init.normal_(layer.weight, std=0.02)  # type: ignore[arg-type]

    def forward(self, t: Tensor, y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.time(timestep_embedding(t, _FREQUENCIES, shift=self.shift).to(dtype)), self.classes(y)


class SelfAttention(nn.Module):
    """Multi-head attention among tokens: (B, S, C) -> (B, S, C)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads, self.size = config.num_heads, (config.side, config.side)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split_heads(self.qkv(x), 3, self.num_heads)
        return self.proj(attend(q, k, v, layer=self, kind="self", size=self.size))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to a condition: (B, S, C), (B, N, C) -> (B, S, C)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads, self.size = config.num_heads, (config.side, config.side)
        self.q = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.kv = nn.Linear(config.hidden_size, 2 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        (q,), (k, v) = split_heads(self.q(x), 1, self.num_heads), split_heads(self.kv(condition), 2, self.num_heads)
        return self.proj(attend(q, k, v, layer=self, kind="cross", size=self.size))


class MLP(nn.Sequential):
    """Two layers around a GELU: (B, S, C) -> (B, S, C)."""

    def __init__(self, config: DiTConfig) -> None:
        inner = int(config.hidden_size * config.mlp_ratio)
        super().__init__(
            nn.Linear(config.hidden_size, inner), nn.GELU(config.gelu), nn.Linear(inner, config.hidden_size)
        )


class AdaLNBlock(nn.Module):
    """Layer norms whose scale and shift come from the condition; `gated` (adaLN-Zero): each branch has a factor too.

    (B, S, C) and (B, 1, C), the condition after its SiLU -> (B, S, C).
    """

    gated = False

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.modulation = nn.Linear(config.hidden_size, (6 if self.gated else 4) * config.hidden_size)
        self.attention = SelfAttention(config)
        self.norm = nn.LayerNorm(config.hidden_size, config.mlp_eps) if config.mlp_norm_affine else None
        self.mlp = MLP(config)
        self.mlp_eps = config.mlp_eps

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        weight, bias = (None, None) if self.norm is None else (self.norm.weight, self.norm.bias)
        modulation = self.modulation(condition).to(x.dtype)  # autocast keeps the sums in x in float32
        gate1, gate2 = None, None
        if self.gated:
            shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)  # each (B, 1, C)
        else:
            shift1, scale1, shift2, scale2 = modulation.chunk(4, dim=-1)
        y = self.attention(ops.ada_layer_norm(x, scale1, shift1)).to(x.dtype)
        x, h = ops.residual_ada_layer_norm(y, x, gate1, scale2, shift2, weight=weight, bias=bias, eps=self.mlp_eps)
        return x + self.mlp(h) if gate2 is None else torch.addcmul(x, gate2, self.mlp(h))


class AdaLNZeroBlock(AdaLNBlock):
    """`AdaLNBlock` with a gate on each branch, zero at first."""

    gated = True


class InContextBlock(nn.Module):
    """A block of a vision transformer (Dosovitskiy et al. 2021); the condition is among the tokens."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, 1e-6)
        self.attention = SelfAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, config.mlp_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CrossAttentionBlock(InContextBlock):
    """Attention to the condition, (B, 2, C), between self-attention and the MLP."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.norm_cross = nn.LayerNorm(config.hidden_size, 1e-6)
        self.cross_attention = CrossAttention(config)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        x = x + self.cross_attention(self.norm_cross(x), condition)
        return x + self.mlp(self.norm2(x))


_BLOCKS: dict[str, type[nn.Module]] = {
    "adaln-zero": AdaLNZeroBlock,
    "adaln": AdaLNBlock,
    "cross-attention": CrossAttentionBlock,
    "in-context": InContextBlock,
}


class FinalLayer(nn.Module):
    """Norm (adaptive where the blocks' are) and a linear layer: (B, S, C) -> (B, S, patch^2 channels out)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.modulation = nn.Linear(config.hidden_size, 2 * config.hidden_size) if config.adaptive else None
        self.norm = None if config.adaptive else nn.LayerNorm(config.hidden_size, 1e-6)
        self.linear = nn.Linear(config.hidden_size, config.patch_size**2 * config.channels_out)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        if self.modulation is None:
            assert self.norm is not None  # one of the two
            return self.linear(self.norm(x))
        shift, scale = self.modulation(condition).to(x.dtype).chunk(2, dim=-1)
        return self.linear(ops.ada_layer_norm(x, scale, shift))


def sincos_positions(width: int, side: int) -> Tensor:
    """Fixed embedding of the positions in a grid (Vaswani et al. 2017, Section 3.5, on both axes).

    Returns (side^2, width) in float32, row by row: sines and cosines of the column, then those of the row.
    """
    numbers = torch.arange(max(width // 4, side), dtype=torch.float64, device="cpu")  # where there is float64
    frequencies = 10_000.0 ** -(numbers[: width // 4] / (width // 4))
    angles = numbers[:side, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    columns, rows = axis.repeat(side, 1), axis.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=1).float()


def _through(blocks: list[tuple[nn.Module, Tensor]], h: Tensor) -> Tensor:
    for block, condition in blocks:
        h = block(h, condition)
    return h
