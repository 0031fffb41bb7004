"""Prompts of known words: a tokenizer by words and a small transformer, trained with the network that it conditions."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastdiff.errors import expect, unknown
from fastdiff.models.parts.transformer import EncoderBlock

PADDING = 0  # the token after the last word, and all there is of no prompt


def words_of(text: str) -> list[str]:
    """Lower-case words of letters and digits, without accents: "Côte d'Ivoire" -> ["cote", "d", "ivoire"]."""
    plain = unicodedata.normalize("NFKD", text.lower())
    return re.findall(r"[a-z0-9#*]+", "".join(c for c in plain if not unicodedata.combining(c)))


class Tokenizer:
    """Prompts to tokens: word k of `words` is token k + 1, and 0 fills up to `length`."""

    def __init__(self, words: Sequence[str], length: int) -> None:
        self.words, self.length = tuple(words), length
        self._token = {word: token for token, word in enumerate(self.words, start=1)}

    @classmethod
    def of(cls, texts: Iterable[str]) -> Tokenizer:
        """One that knows the words of these texts and has room for the longest."""
        split = [words_of(text) for text in texts]
        return cls(sorted({word for words in split for word in words}), max(map(len, split)))

    def tokens(self, prompt: str | None) -> list[int]:
        """The `length` tokens of a prompt; None and "" are no prompt. Raises ValueError that names the nearest known
        words, or for too many words."""
        words = words_of(prompt or "")
        expect(len(words) <= self.length, f"a prompt has at most {self.length} words, got {len(words)} in {prompt!r}")
        expect(bool(words) or not (prompt or "").strip(), f"the prompt {prompt!r} has no words")
        for word in words:
            if word not in self._token:
                raise unknown("word", word, self.words)
        return [self._token[word] for word in words] + [PADDING] * (self.length - len(words))

    def with_word(self, word: str) -> Tokenizer:
        """One that knows a further word, as its last token. Raises ValueError if it is known, or not one word in lower
        case."""
        expect(words_of(word) == [word], f"word must be one word of a-z, 0-9, # and *, got {word!r}")
        expect(word not in self._token, f"the word {word!r} is known already")
        return Tokenizer((*self.words, word), self.length)


@dataclass(frozen=True)
class TextConfig:
    """The shape of a `TextEncoder`. words: without the padding. length: of a prompt in tokens."""

    words: int
    length: int
    width: int = 128
    layers: int = 2
    heads: int = 4


class TextEncoder(nn.Module):
    """Tokens (B, length) int64 -> a context (B, length, width) and its mean over the words (B, width).

    A prompt without words has the mean of its padding.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.words + 1, config.width)
        self.positions = nn.Parameter(0.02 * torch.randn(config.length, config.width))
        self.blocks = nn.ModuleList(EncoderBlock(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def add_token(self, embedding: Tensor) -> None:
        """A further token, the last one, with this embedding, (width,)."""
        table = self.tokens.weight
        with torch.no_grad():
            rows = torch.cat([table, embedding[None].to(table)])
        self.tokens = nn.Embedding.from_pretrained(rows, freeze=not table.requires_grad)
        self.config = replace(self.config, words=self.config.words + 1)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        expect(
            tokens.ndim == 2 and tokens.shape[1] == self.config.length,
            f"tokens must be (B, {self.config.length}), got {tuple(tokens.shape)}",
        )
        h = self.tokens(tokens) + self.positions
        for block in self.blocks:
            h = block(h)
        h = self.norm(h)
        used = (tokens != PADDING).to(h.dtype)
        used = torch.where(used.sum(1, keepdim=True) > 0, used, 1.0)[..., None]
        return h, (h * used).sum(1) / used.sum(1)
