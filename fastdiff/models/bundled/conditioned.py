"""Latent diffusion with all that it needs to go from a prompt or a class to a picture: what the bundled models on
latents are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastdiff.models.autoencoder import AutoencoderConfig, AutoencoderKL
from fastdiff.models.dit import DiT, DiTConfig
from fastdiff.models.info import ModelInfo
from fastdiff.models.ldm import LatentDiffusion, LDMConfig, LDMUNet
from fastdiff.models.text import TextConfig, TextEncoder


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


class ClassLatentDiffusion(LatentDiffusion):
    """A diffusion transformer on latents: `model(z, t, y)` with classes y, (B,) int64."""

    info: ModelInfo  # of a model from fastdiff.load

    def __init__(self, dit: DiTConfig, autoencoder: AutoencoderConfig, scale_factor: float = 1.0) -> None:
        super().__init__(DiT(dit), AutoencoderKL(autoencoder), scale_factor)

    def forward(self, z: Tensor, t: Tensor, y: Tensor, **options: Any) -> Tensor:  # type: ignore[override]
        return self.unet(z, t, y, **options)
