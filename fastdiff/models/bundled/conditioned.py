"""Latent diffusion with all that it needs to go from a prompt or a class to a picture: what the bundled models on
latents are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from fastdiff.errors import expect
from fastdiff.models.autoencoder import AutoencoderConfig, AutoencoderKL
from fastdiff.models.dit import DiT, DiTConfig
from fastdiff.models.info import ModelInfo, PromptInfo
from fastdiff.models.ldm import LatentDiffusion, LDMConfig, LDMUNet
from fastdiff.models.text import PADDING, TextConfig, TextEncoder, words_of


class PromptLatentDiffusion(LatentDiffusion):
    """A latent U-Net with a text encoder: `model(z, t, context, y)`, where context, y = `model.text(tokens)`.

    The U-Net attends to the context, (B, length, width), and y, (B, width), is added to the embedding of the time
    (Podell et al. 2023, Section 2.1, pooled text).
    """

    info: ModelInfo  # of a model from fastdiff.load

    def __init__(
        self, unet: LDMConfig, text: TextConfig, autoencoder: AutoencoderConfig, scale_factor: float = 1.0
    ) -> None:
        super().__init__(LDMUNet(unet), AutoencoderKL(autoencoder), scale_factor)
        self.text = TextEncoder(text)

    def add_word(self, word: str, like: str | None = None) -> int:
        """Let prompts have a new word, and return its token, whose embedding is `text.tokens.weight[token]`.

        like: a known word whose embedding it starts with (Gal et al. 2022, Textual Inversion, Section 4: "a single-word
        coarse descriptor"); the mean of all words, which means nothing, if None. Raises ValueError if the word is known
        or not one word in lower case, or if `like` is not a known word.
        """
        info = getattr(self, "info", None)
        if not isinstance(info, PromptInfo):
            raise ValueError("this model has no tokenizer to add a word to: add_word is for one from fastdiff.load")
        tokenizer, table = info.tokenizer.with_word(word), self.text.tokens.weight
        if like is None:
            start = table[PADDING + 1 :].mean(0)
        else:
            expect(len(words_of(like)) == 1, f"like must be one word, got {like!r}")
            start = table[info.tokenizer.tokens(like)[0]]
        self.text.add_token(start)
        self.info = replace(info, tokenizer=tokenizer)
        return len(tokenizer.words)


class ClassLatentDiffusion(LatentDiffusion):
    """A diffusion transformer on latents: `model(z, t, y)` with classes y, (B,) int64."""

    info: ModelInfo  # of a model from fastdiff.load

    def __init__(self, dit: DiTConfig, autoencoder: AutoencoderConfig, scale_factor: float = 1.0) -> None:
        super().__init__(DiT(dit), AutoencoderKL(autoencoder), scale_factor)

    def forward(self, z: Tensor, t: Tensor, y: Tensor, **options: Any) -> Tensor:  # type: ignore[override]
        return self.unet(z, t, y, **options)
