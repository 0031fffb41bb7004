"""From a recipe to what is trained."""

from __future__ import annotations

import torch

from fastdiff.models.autoencoder import AutoencoderKL
from fastdiff.train.emoji.autoencoding import Autoencoding
from fastdiff.train.emoji.data import EmojiData
from fastdiff.train.emoji.latents import ClassObjective, PromptObjective
from fastdiff.train.emoji.objective import EmojiObjective
from fastdiff.train.emoji.pixels import PixelDiffusion
from fastdiff.train.emoji.recipes import AutoencoderRecipe, ClassRecipe, EmojiRun, PromptRecipe, Recipe


def make_objective(
    recipe: EmojiRun, data: EmojiData, autoencoder: AutoencoderKL | None = None, *, device: torch.device | str = "cpu"
) -> EmojiObjective:
    """The objective of a recipe's kind. autoencoder: the trained one, for a recipe on latents."""
    if isinstance(recipe, AutoencoderRecipe):
        return Autoencoding(recipe, data, device=device)
    if isinstance(recipe, Recipe):
        return PixelDiffusion(recipe, data, device=device)
    if autoencoder is None:
        raise ValueError(f"{recipe.name} is trained on latents and needs the autoencoder")
    if isinstance(recipe, PromptRecipe):
        return PromptObjective(recipe, data, autoencoder, device=device)
    if isinstance(recipe, ClassRecipe):
        return ClassObjective(recipe, data, autoencoder, device=device)
    raise TypeError(f"no objective for a {type(recipe).__name__}")
