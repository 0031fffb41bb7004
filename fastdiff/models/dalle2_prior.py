"""The prior of DALLE2-pytorch, after unCLIP's (Ramesh et al. 2022, Section 2.2): a causal transformer with one head of
keys and values (Shazeer 2019), cosine similarities, and rotary and relative positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.parts.attention import attend
from fastdiff.models.parts.blocks import GainNorm, embedding_dtype, timestep_embedding
from fastdiff.models.parts.positions import buckets, rotate

_BUCKETS, _MAX_DISTANCE = 32, 128  # of relative positions
_SCALE = 16.0  # of the cosine similarities


@dataclass(frozen=True)
class DALLE2PriorConfig:
    """The arguments of `DiffusionPriorNetwork` and of its transformer.

    dim: channels of the embeddings and of the transformer. depth: blocks. num_timesteps: of training, None for times
    that are any numbers. num_time_embeds, num_image_embeds, num_text_embeds: tokens that the time, the image and the
    text are made of. max_text_len: tokens of a text. self_cond: the model sees its last result. norm_in, norm_out,
    final_proj: a norm before and after the blocks, a linear layer at the end. normformer: a norm in each feed-forward
    layer. rotary_emb: rotary positions beside the relative ones.
    """

    dim: int
    depth: int
    num_timesteps: int | None = None
    num_time_embeds: int = 1
    num_image_embeds: int = 1
    num_text_embeds: int = 1
    max_text_len: int = 256
    self_cond: bool = False
    dim_head: int = 64
    heads: int = 8
    ff_mult: float = 4
    norm_in: bool = False
    norm_out: bool = True
    attn_dropout: float = 0.0
    ff_dropout: float = 0.0
    final_proj: bool = True
    normformer: bool = False
    rotary_emb: bool = True


class DALLE2Prior(nn.Module):
    """`model(x, t, text, tokens, ...)` -> the clean image embedding, (B, dim): prediction "x0".

    x: (B, dim). t: (B,) training times; whole numbers below num_timesteps if that is given. text: (B, dim), CLIP's of
    the text. tokens: (B, S, dim), CLIP's of each token; those that are all zero are padding, and those beyond
    max_text_len are cut off. keep_text, keep_image: (B,) boolean, False where the text, or x, is replaced by what was
    learned for none, as in the unconditional calls of guidance. self_cond: (B, dim), the last result; zeros if not
    given. Raises ValueError where these do not fit.
    """

    def __init__(self, config: DALLE2PriorConfig) -> None:
        super().__init__()
        self.config = config
        dim, count = config.dim, config.num_time_embeds
        self.text_proj = _several(dim, config.num_text_embeds)
        self.image_proj = _several(dim, config.num_image_embeds)
        self.times = nn.Embedding(config.num_timesteps, dim * count) if config.num_timesteps else None
        self.time_mlp = None if config.num_timesteps else _time_mlp(dim, dim * count)
        self.query = nn.Parameter(torch.randn(dim))
        self.null_tokens = nn.Parameter(torch.randn(1, config.max_text_len, dim))
        self.null_text = nn.Parameter(torch.randn(1, config.num_text_embeds, dim))
        self.null_image = nn.Parameter(torch.randn(1, dim))
        self.norm_in = GainNorm(dim) if config.norm_in else nn.Identity()
        self.bias = nn.Embedding(_BUCKETS, config.heads)  # of relative positions
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_out = GainNorm(dim, stable=True) if config.norm_out else nn.Identity()
        self.proj_out = nn.Linear(dim, dim, bias=False) if config.final_proj else nn.Identity()

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        tokens: Tensor | None = None,
        *,
        keep_text: Tensor | None = None,
        keep_image: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> Tensor:
        batch, dim = len(x), self.config.dim
        for name, value in (("x", x), ("text", text), ("self_cond", self_cond)):
            expect(
                value is None or value.shape == (batch, dim),
                f"{name} must be ({batch}, {dim}), got {None if value is None else tuple(value.shape)}",
            )
        for name, value in (("keep_text", keep_text), ("keep_image", keep_image)):
            expect(
                value is None or value.shape == (batch,),
                f"{name} must be ({batch},), got {None if value is None else tuple(value.shape)}",
            )
        expect(self_cond is None or self.config.self_cond, "self_cond was given, but the model has no self_cond")
        parts = [
            self._tokens(tokens, keep_text, x),
            _kept(self.text_proj(text).reshape(batch, -1, dim), keep_text, self.null_text),
            self._time(t, x),
            _kept(self.image_proj(x).reshape(batch, -1, dim), keep_image, self.null_image[:, None]),
        ]
        if self.config.self_cond:
            parts.append((torch.zeros_like(x) if self_cond is None else self_cond)[:, None])
        parts.append(self.query.to(x.dtype).expand(batch, 1, dim))
        h = self.norm_in(torch.cat(parts, dim=1))
        bias = self._bias(h.shape[1], h.dtype)
        for block in self.blocks:
            h = block(h, bias)
        return self.proj_out(self.norm_out(h))[:, -1]

    def _tokens(self, tokens: Tensor | None, keep: Tensor | None, x: Tensor) -> Tensor:
        """Of the text, (B, max_text_len, dim), padding and texts that are left out replaced."""
        length, dim = self.config.max_text_len, self.config.dim
        if tokens is None:
            tokens = x.new_zeros(len(x), 0, dim)
        expect(
            tokens.ndim == 3 and tokens.shape[::2] == (len(x), dim),
            f"tokens must be ({len(x)}, S, {dim}), got {tuple(tokens.shape)}",
        )
        tokens = tokens[:, :length]
        tokens = F.pad(tokens, (0, 0, 0, length - tokens.shape[1]))
        present = (tokens != 0).any(dim=2)
        if keep is not None:
            present = present & keep.bool()[:, None]
        return torch.where(present[..., None], tokens, self.null_tokens.to(tokens.dtype))

    def _time(self, t: Tensor, x: Tensor) -> Tensor:
        """(B, num_time_embeds, dim)."""
        expect(t.shape == x.shape[:1], f"t must be ({len(x)},), one time a sample, got {tuple(t.shape)}")
        if self.times is not None:
            embedded = self.times(t.long())
        else:
            assert self.time_mlp is not None  # one of the two
            features = timestep_embedding(t.to(embedding_dtype(x)), self.config.dim, sin_first=True, shift=1)
            embedded = self.time_mlp(features.to(x.dtype))
        return embedded.reshape(len(x), -1, self.config.dim).to(x.dtype)

    def _bias(self, length: int, dtype: torch.dtype) -> Tensor:
        """What is added to the scores, (1, heads, length, 1 + length): the first key is the learned one, which all see
        and which counts as a position; of the others each query sees those up to itself."""
        device = self.bias.weight.device
        queries, keys = torch.arange(length, device=device), torch.arange(length + 1, device=device)
        distance = queries[:, None] - keys
        values = self.bias(buckets(distance.clamp(min=0), _BUCKETS, _MAX_DISTANCE)).permute(2, 0, 1)[None]
        return values.masked_fill(distance < -1, -torch.inf).to(dtype)


class Block(nn.Module):
    """Attention and a gated feed-forward layer, each with a residual: (B, S, dim) -> (B, S, dim).

    bias: added to the scores, (1, heads, S, 1 + S); the first of the keys is learned.
    """

    def __init__(self, config: DALLE2PriorConfig) -> None:
        super().__init__()
        dim, size, inner = config.dim, config.dim_head, config.heads * config.dim_head
        hidden = int(config.ff_mult * dim)
        self.num_heads = config.heads
        self.norm = GainNorm(dim)
        self.null_kv = nn.Parameter(torch.randn(2, size))
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * size, bias=False)
        self.register_buffer("frequencies", _frequencies(min(32, size)) if config.rotary_emb else None)
        self.to_out = nn.Linear(inner, dim, bias=False)
        self.norm_attention = GainNorm(dim)
        self.attn_dropout = config.attn_dropout
        self.norm_ff = GainNorm(dim)
        self.ff_in = nn.Linear(dim, 2 * hidden, bias=False)
        self.norm_hidden = GainNorm(hidden) if config.normformer else nn.Identity()
        self.dropout = nn.Dropout(config.ff_dropout)
        self.ff_out = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self._attention(self.norm(x), bias)
        value, gate = self.ff_in(self.norm_ff(x)).chunk(2, dim=-1)
        return x + self.ff_out(self.dropout(self.norm_hidden(value * F.silu(gate))))

    def _attention(self, x: Tensor, bias: Tensor) -> Tensor:
        q = self.to_q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, S, D)
        k, v = self.to_kv(x)[:, None].chunk(2, dim=-1)  # (B, 1, S, D)
        if isinstance(self.frequencies, Tensor):
            positions = torch.arange(x.shape[1], device=x.device, dtype=self.frequencies.dtype)
            angles = positions[:, None] * self.frequencies
            q, k = rotate(q, angles), rotate(k, angles)
        null = self.null_kv.to(x.dtype)[:, None, None, None].expand(2, len(x), 1, 1, -1)
        k, v = torch.cat([null[0], k], dim=2), torch.cat([null[1], v], dim=2)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        k, v = (heads.expand(-1, self.num_heads, -1, -1) for heads in (k, v))
        if self.training and self.attn_dropout > 0:  # of the maps, which `attend` does not make
            kept = torch.rand_like(bias.expand(len(x), -1, -1, -1)) >= self.attn_dropout
            maps = (_SCALE * q @ k.transpose(2, 3) + bias).softmax(-1) * kept / (1 - self.attn_dropout)
            h = (maps @ v).transpose(1, 2).flatten(2)
        else:
            h = attend(q, k, v, layer=self, kind="self", mask=bias, scale=_SCALE)
        return self.norm_attention(self.to_out(h))


def _frequencies(channels: int) -> Tensor:
    steps = torch.arange(0, channels, 2, dtype=torch.float32)[: channels // 2]
    return 1.0 / 10_000.0 ** (steps / channels)


def _several(dim: int, count: int) -> nn.Module:
    """One embedding to `count` of them."""
    return nn.Linear(dim, dim * count) if count > 1 else nn.Identity()


def _time_mlp(channels: int, out_channels: int) -> nn.Sequential:
    hidden = 2 * out_channels
    return nn.Sequential(
        nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out_channels)
    )


def _kept(tokens: Tensor, keep: Tensor | None, null: Tensor) -> Tensor:
    """tokens (B, n, dim), with those of null (1, n or 1, dim) where they are left out."""
    return tokens if keep is None else torch.where(keep.bool()[:, None, None], tokens, null.to(tokens.dtype))
