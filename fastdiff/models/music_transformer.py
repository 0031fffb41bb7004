"""The transformer of Mittal et al. 2021, Symbolic Music Generation with Diffusion Models, Section 4.3, on sequences of
latents of short pieces of a melody; in the form of magenta's `TransformerDDPM`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.parts.attention import attend, split_heads
from fastdiff.models.parts.blocks import embedding_dtype, mlp, rate_embedding

_WIDTH = 128  # channels of the transformer and of the embeddings
_EPS = 1e-6  # flax's, of layer norms


@dataclass(frozen=True)
class MusicTransformerConfig:
    """The arguments of `TransformerDDPM`, and data_channels, which it takes from its input.

    num_layers: of attention and feed-forward. num_mlp_layers: residual blocks after them, conditioned on the noise.
    """

    data_channels: int
    num_layers: int = 6
    num_heads: int = 8
    num_mlp_layers: int = 2
    mlp_dims: int = 2048

    def __post_init__(self) -> None:
        expect(_WIDTH % self.num_heads == 0, f"num_heads must divide {_WIDTH}, got {self.num_heads}")


class MusicTransformer(nn.Module):
    """Noise-prediction network: `model(x, t)` -> (B, L, data_channels).

    x: (B, L, data_channels). t: (B,), (B, 1) or (B, 1, 1), the noise level alpha in (0, 1): the square root of the
    cumulative product of 1 - beta. Sampled with prediction=fastdiff.prediction.of_noise_level(). Raises ValueError
    where these do not fit.
    """

    def __init__(self, config: MusicTransformerConfig) -> None:
        super().__init__()
        self.config = config
        channels, hidden = config.data_channels, config.mlp_dims
        self.proj_in = nn.Linear(channels, _WIDTH)
        self.blocks = nn.ModuleList(TransformerBlock(config.num_heads, hidden) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(_WIDTH, eps=_EPS)
        self.proj_hidden = nn.Linear(_WIDTH, hidden)
        self.films = nn.ModuleList(FiLM(hidden) for _ in range(config.num_mlp_layers))
        self.layers = nn.ModuleList(DenseBlock(hidden) for _ in range(config.num_mlp_layers))
        self.norm_out = nn.LayerNorm(hidden, eps=_EPS)
        self.proj_out = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        channels = self.config.data_channels
        expect(x.ndim == 3 and x.shape[2] == channels, f"x must be (B, L, {channels}), got {tuple(x.shape)}")
        fits = t.numel() == len(x) and t.ndim in (1, 2, 3)
        expect(fits, f"t must be ({len(x)},), one noise level a sample, got {tuple(t.shape)}")
        level = 5000 * t.reshape(len(x)).to(embedding_dtype(x))
        positions = torch.arange(x.shape[1], device=x.device, dtype=level.dtype)
        h = self.proj_in(x) + rate_embedding(positions, _WIDTH).to(x.dtype)
        for block in self.blocks:
            h = block(h)
        h = self.proj_hidden(self.norm(h))
        features = rate_embedding(level, _WIDTH).to(x.dtype)
        for film, layer in zip(self.films, self.layers):
            h = layer(h, *film(features))
        return self.proj_out(self.norm_out(h))


class TransformerBlock(nn.Module):
    """Attention and a feed-forward layer, each on a norm and with a residual: (B, L, 128) -> the same."""

    def __init__(self, heads: int, hidden: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.norm1 = nn.LayerNorm(_WIDTH, eps=_EPS)
        self.qkv, self.proj = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.norm2 = nn.LayerNorm(_WIDTH, eps=_EPS)
        self.ff = nn.Sequential(nn.Linear(_WIDTH, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, _WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split_heads(self.qkv(self.norm1(x)), 3, self.num_heads)
        x = x + self.proj(attend(q, k, v, layer=self, kind="self"))
        return x + self.ff(self.norm2(x))


class FiLM(nn.Module):
    """Scale and shift, (B, 1, hidden) each, of features of a noise level (B, 128). Perez et al. 2018, FiLM, Eq. 2."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = mlp(_WIDTH, 4 * _WIDTH)
        self.scale, self.shift = nn.Linear(4 * _WIDTH, hidden), nn.Linear(4 * _WIDTH, hidden)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        h = self.mlp(features)[:, None]
        return self.scale(h), self.shift(h)


class DenseBlock(nn.Module):
    """Norm, scale and shift, SiLU, linear, twice, with a residual: (B, L, hidden) -> the same."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm1, self.linear1 = nn.LayerNorm(hidden, eps=_EPS), nn.Linear(hidden, hidden)
        self.norm2, self.linear2 = nn.LayerNorm(hidden, eps=_EPS), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        h = self.linear1(F.silu(scale * self.norm1(x) + shift))
        return x + self.linear2(F.silu(scale * self.norm2(h) + shift))
