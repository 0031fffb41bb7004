"""The prior of unCLIP (Ramesh et al. 2022, Section 2.2): a transformer that makes an image embedding of a text's, by
diffusion. Karlo's and diffusers', whose flags also make that of Shap-E (Jun & Nichol 2023, Section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect, unknown
from fastdiff.models.adm import embed_times
from fastdiff.models.parts.transformer import EncoderBlock

_ACTIVATIONS = {"silu": nn.SiLU, "swish": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU, "mish": nn.Mish}
# Of the fields that name a kind, what they may be.
_KINDS = {
    "norm_in_type": (None, "layer"),
    "embedding_proj_norm_type": (None, "layer"),
    "encoder_hid_proj_type": ("linear", None),
    "added_emb_type": ("prd", None),
}


@dataclass(frozen=True)
class PriorConfig:
    """The arguments of diffusers' `PriorTransformer`.

    embedding_dim: of what is denoised, and of the text's tokens. num_embeddings: tokens of a text.
    additional_embeddings: those after it that have positions. norm_in_type: "layer" for a norm before the blocks.
    embedding_proj_norm_type: the same of the condition. encoder_hid_proj_type: None for a model without tokens of a
    text. added_emb_type: "prd" for a learned last token, from which the result is read; without it each token that is
    denoised has one. The others that end in dim are embedding_dim, or the transformer's width, if not given. norm_out,
    statistics: whether there is a norm after the blocks, and the mean and deviation of the embeddings; Karlo has a
    choice of the first and keeps the second elsewhere.
    """

    num_attention_heads: int = 32
    attention_head_dim: int = 64
    num_layers: int = 20
    embedding_dim: int = 768
    num_embeddings: int = 77
    additional_embeddings: int = 4
    dropout: float = 0.0
    time_embed_act_fn: str = "silu"
    norm_in_type: str | None = None
    embedding_proj_norm_type: str | None = None
    encoder_hid_proj_type: str | None = "linear"
    added_emb_type: str | None = "prd"
    time_embed_dim: int | None = None
    embedding_proj_dim: int | None = None
    clip_embed_dim: int | None = None
    norm_out: bool = True
    statistics: bool = True

    def __post_init__(self) -> None:
        for field, kinds in _KINDS.items():
            if getattr(self, field) not in kinds:
                raise unknown(field, getattr(self, field), [str(kind) for kind in kinds])
        if self.time_embed_act_fn not in _ACTIVATIONS:
            raise unknown("time_embed_act_fn", self.time_embed_act_fn, _ACTIVATIONS)

    @property
    def width(self) -> int:
        """Of the transformer."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def condition_channels(self) -> int:
        """Of the embedding that it is conditioned on."""
        return self.embedding_proj_dim or self.embedding_dim

    @property
    def channels_out(self) -> int:
        """Of the result."""
        return self.clip_embed_dim or self.embedding_dim


class Prior(nn.Module):
    """`model(x, t, embedding, text, mask)` -> the clean image embedding, (B, channels out): prediction "x0".

    x: (B, embedding_dim), normalised as the model's `denormalise` undoes; without the "prd" token (B, N,
    embedding_dim), and so is the result. t: (B,) training times. embedding: (B, condition channels), CLIP's of the
    text (Shap-E: of an image). text: (B, num_embeddings, embedding_dim), CLIP's of each token, for a model with text.
    mask: (B, num_embeddings) boolean, False for padding, the first True; with it each token sees those before it, as in
    training, and without it all see all. Raises ValueError where these do not fit.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        width, heads = config.width, config.num_attention_heads
        self.time_embedding = nn.Sequential(
            nn.Linear(width, config.time_embed_dim or width),
            _ACTIVATIONS[config.time_embed_act_fn](),
            nn.Linear(config.time_embed_dim or width, width),
        )
        condition = config.condition_channels
        self.norm_condition = nn.LayerNorm(condition) if config.embedding_proj_norm_type else nn.Identity()
        self.condition_proj = nn.Linear(condition, width)
        self.text_proj = nn.Linear(config.embedding_dim, width) if config.encoder_hid_proj_type else None
        self.proj_in = nn.Linear(config.embedding_dim, width)
        self.query = nn.Parameter(0.01 * torch.randn(1, 1, width)) if config.added_emb_type else None
        positions = config.num_embeddings + config.additional_embeddings
        self.positions = nn.Parameter(0.01 * torch.randn(1, positions, width))
        self.norm_in = nn.LayerNorm(width) if config.norm_in_type else nn.Identity()
        self.blocks = nn.ModuleList(
            EncoderBlock(width, heads, dropout=config.dropout) for _ in range(config.num_layers)
        )
        self.norm_out = nn.LayerNorm(width) if config.norm_out else nn.Identity()
        self.proj_out = nn.Linear(width, config.channels_out)
        self.mean = nn.Parameter(torch.zeros(1, config.channels_out)) if config.statistics else None
        self.std = nn.Parameter(torch.ones(1, config.channels_out)) if config.statistics else None

    def forward(
        self, x: Tensor, t: Tensor, embedding: Tensor, text: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        self._check(x, embedding, text, mask)
        time = self.time_embedding(embed_times(x, t, self.config.width))
        tokens = [self.condition_proj(self.norm_condition(embedding))[:, None], time[:, None]]
        if self.text_proj is not None and text is not None:
            tokens.insert(0, self.text_proj(text))
        before = sum(part.shape[1] for part in tokens)
        tokens.append(self.proj_in(x if x.ndim == 3 else x[:, None]))
        if self.query is not None:
            tokens.append(self.query.to(x.dtype).expand(len(x), -1, -1))
        h = torch.cat(tokens, dim=1)
        h = self.norm_in(h + self._positions(before, h.shape[1]).to(h.dtype))
        sees = None if mask is None else causal(mask, h.shape[1])
        for block in self.blocks:
            h = block(h, sees)
        h = self.norm_out(h)
        return self.proj_out(h[:, before:] if self.query is None else h[:, -1])

    def denormalise(self, x: Tensor) -> Tensor:
        """A sample of the model as an embedding of CLIP's: of the published models the samples have unit variance."""
        if self.mean is None or self.std is None:
            raise ValueError("the model does not know the mean and the deviation of the embeddings")
        return x * self.std + self.mean

    def _positions(self, before: int, length: int) -> Tensor:
        """(1, length, width): zero for the conditions, and the query, if there are fewer positions than tokens."""
        known: Tensor = self.positions
        if known.shape[1] < length:
            known = F.pad(known, (0, 0, before, 0 if self.query is None else 1))
        expect(
            known.shape[1] == length,
            f"the model has positions for {known.shape[1]} tokens, and the input makes {length} of them",
        )
        return known

    def _check(self, x: Tensor, embedding: Tensor, text: Tensor | None, mask: Tensor | None) -> None:
        config = self.config
        channels, size = config.embedding_dim, config.num_embeddings
        if self.query is not None:
            expect(x.shape[1:] == (channels,), f"x must be (B, {channels}), got {tuple(x.shape)}")
        else:
            expect(x.ndim in (2, 3) and x.shape[-1] == channels, f"x must be (B, N, {channels}), got {tuple(x.shape)}")
        wanted = (len(x), config.condition_channels)
        expect(embedding.shape == wanted, f"embedding must be {wanted}, got {tuple(embedding.shape)}")
        if self.text_proj is None:
            expect(text is None, "text was given, but the model takes no tokens of a text")
        elif text is None or text.shape != (len(x), size, channels):
            got = None if text is None else tuple(text.shape)
            raise ValueError(f"text must be {(len(x), size, channels)}, got {got}")
        expect(
            mask is None or mask.shape == (len(x), size),
            f"mask must be {(len(x), size)}, got {None if mask is None else tuple(mask.shape)}",
        )


def causal(mask: Tensor, length: int) -> Tensor:
    """Which tokens each one sees: those up to itself that count. (B, T) boolean -> (B, 1, length, length); those after
    the first T count."""
    counts = F.pad(mask.bool(), (0, length - mask.shape[1]), value=True)
    before = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return counts[:, None, None] & before
