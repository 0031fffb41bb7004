"""Training of a class-conditional diffusion model on the pictures themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastdiff
from fastdiff.models.unet import UNet
from fastdiff.train.emoji.data import EmojiData
from fastdiff.train.emoji.objective import EmojiObjective
from fastdiff.train.emoji.recipes import Recipe
from fastdiff.train.losses import denoising_loss

VALIDATION_DRAWS = 4
SAMPLES_A_CLASS = 6


class PixelDiffusion(EmojiObjective):
    """A class-conditional U-Net on the pictures themselves."""

    recipe: Recipe

    def __init__(self, recipe: Recipe, data: EmojiData, *, device: torch.device | str = "cpu") -> None:
        super().__init__(recipe, data, device=device)
        labels = torch.from_numpy(data.labels)
        self.labels, self.validation_labels = labels[~self.held_out], labels[self.held_out]
        self.process = recipe.process()

    def make_network(self) -> nn.Module:
        return UNet(self.recipe.network)

    def loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        chosen = self.draw(generator)
        labels = self.labels[chosen]
        dropped = torch.rand(len(labels), generator=generator) < self.recipe.class_dropout
        labels = torch.where(dropped, self.recipe.network.num_classes, labels)
        return self._loss(network, self.images[chosen], labels, generator)

    def validation_loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        images = self.validation_images.repeat(VALIDATION_DRAWS, 1, 1, 1)
        return self._loss(network, images, self.validation_labels.repeat(VALIDATION_DRAWS), generator)

    def pictures(self, network: nn.Module) -> tuple[Tensor, int]:
        """A row of samples for each class, always of the same noise."""
        count = len(self.data.classes)
        labels = torch.arange(count).repeat_interleave(SAMPLES_A_CLASS).to(self.device)
        samples = fastdiff.sample(
            network,
            (len(labels), self.recipe.network.image_channels, self.recipe.size, self.recipe.size),
            schedule=self.recipe.schedule,
            prediction=self.recipe.prediction,
            steps=20,
            guidance=2.0,
            cond={"y": labels},
            uncond={"y": torch.full_like(labels, count)},
            seed=0,
        )
        return samples, SAMPLES_A_CLASS

    def _loss(self, network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        x0, y = self.pixels(images), labels.to(self.device)
        return denoising_loss(self.in_precision(network), self.process, x0, generator, y=y).mean()
