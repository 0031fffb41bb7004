"""From a recipe to what is trained."""

from __future__ import annotations

import torch
from torch import nn

from fastdiff.models import bundled
from fastdiff.models.autoencoder import AutoencoderKL
from fastdiff.models.bundled.conditioned import ClassLatentDiffusion, PromptLatentDiffusion
from fastdiff.models.unet import UNet
from fastdiff.train.emoji.autoencoding import Autoencoding
from fastdiff.train.emoji.controlling import EdgeControl
from fastdiff.train.emoji.data import EmojiData
from fastdiff.train.emoji.latents import ClassObjective, PromptObjective
from fastdiff.train.emoji.objective import EmojiObjective
from fastdiff.train.emoji.pixels import PixelDiffusion
from fastdiff.train.emoji.recipes import (
    AutoencoderRecipe,
    ClassRecipe,
    ConsistencyRecipe,
    ControlRecipe,
    EmojiRun,
    LatentProgressiveRecipe,
    PromptRecipe,
    Recipe,
    Student,
    UpsamplerRecipe,
)
from fastdiff.train.emoji.students import LatentProgressive, PixelConsistency, PixelProgressive
from fastdiff.train.emoji.upsampling import Upsampling


def make_objective(
    recipe: EmojiRun,
    data: EmojiData,
    autoencoder: AutoencoderKL | None = None,
    *,
    base: PromptLatentDiffusion | None = None,
    teacher: nn.Module | None = None,
    device: torch.device | str = "cpu",
) -> EmojiObjective:
    """The objective of a recipe's kind. autoencoder: the trained one, for a recipe on latents. base: the model that is
    controlled, for a ControlNet. teacher: the trained one, for a student of a student; bundled ones are loaded."""
    if isinstance(recipe, AutoencoderRecipe):
        return Autoencoding(recipe, data, device=device)
    if isinstance(recipe, Student):
        return _student(recipe, data, teacher, device)
    if isinstance(recipe, Recipe):
        return PixelDiffusion(recipe, data, device=device)
    if isinstance(recipe, UpsamplerRecipe):
        return Upsampling(recipe, data, device=device)
    if isinstance(recipe, ControlRecipe):
        if base is None:
            raise ValueError(f"{recipe.name} controls {recipe.base} and needs it as base")
        return EdgeControl(recipe, data, base, device=device)
    if autoencoder is None:
        raise ValueError(f"{recipe.name} is trained on latents and needs the autoencoder")
    if isinstance(recipe, PromptRecipe):
        return PromptObjective(recipe, data, autoencoder, device=device)
    if isinstance(recipe, ClassRecipe):
        return ClassObjective(recipe, data, autoencoder, device=device)
    raise TypeError(f"no objective for a {type(recipe).__name__}")


def _student(recipe: Student, data: EmojiData, teacher: nn.Module | None, device: torch.device | str) -> EmojiObjective:
    original = bundled.load(recipe.original)
    if teacher is None and isinstance(recipe.teacher, Student):
        raise ValueError(f"{recipe.name} learns from {recipe.teacher.name} and needs its network")
    teacher = original if teacher is None else teacher
    if isinstance(recipe, LatentProgressiveRecipe):
        assert isinstance(original, ClassLatentDiffusion)
        assert isinstance(teacher, ClassLatentDiffusion)
        return LatentProgressive(recipe, data, original, teacher, device=device)
    assert isinstance(original, UNet)
    assert isinstance(teacher, UNet)
    kind = PixelConsistency if isinstance(recipe, ConsistencyRecipe) else PixelProgressive
    return kind(recipe, data, original, teacher, device=device)
