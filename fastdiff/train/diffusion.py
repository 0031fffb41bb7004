"""Training of diffusion models: v prediction at random times (Salimans & Ho 2022)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import fastdiff
from fastdiff.models.unet import UNet
from fastdiff.process.schedules import SCHEDULES, VPDiscrete
from fastdiff.train.emoji_data import EmojiData
from fastdiff.train.objective import Network, Objective
from fastdiff.train.recipes import Recipe

VALIDATION_DRAWS = 4
SAMPLES_A_CLASS = 6


class Denoising:
    """The loss of a network on noised x0 at the steps of a schedule, a name in SCHEDULES of a discrete one."""

    def __init__(self, schedule: str) -> None:
        found = SCHEDULES[schedule]()
        assert isinstance(found, VPDiscrete), "the recipes train on discrete steps"
        times = np.arange(1, found.num_steps + 1) / found.num_steps
        self.alpha = torch.from_numpy(found.alpha(times)).float()
        self.sigma = torch.from_numpy(found.sigma(times)).float()

    def noised(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t, t, v) for times stratified over the batch: v = alpha eps - sigma x_0 (Salimans & Ho 2022, Section 4),
        t in steps as the network takes it."""
        batch = len(x0)
        eps = torch.randn(x0.shape, generator=generator).to(x0)
        u = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        n = (u * len(self.alpha)).long().clamp_(max=len(self.alpha) - 1)
        alpha, sigma = (table[n].to(x0)[:, None, None, None] for table in (self.alpha, self.sigma))
        return alpha * x0 + sigma * eps, n.to(x0), alpha * eps - sigma * x0


class PixelDiffusion(Objective):
    """A class-conditional U-Net on the pictures themselves."""

    recipe: Recipe

    def __init__(self, recipe: Recipe, data: EmojiData, *, device: torch.device | str = "cpu") -> None:
        super().__init__(recipe, data, device=device)
        labels = torch.from_numpy(data.labels)
        self.labels, self.validation_labels = labels[~self.held_out], labels[self.held_out]
        self.denoising = Denoising(recipe.schedule)

    def make_network(self) -> nn.Module:
        return UNet(self.recipe.network)

    def loss(self, network: Network, generator: torch.Generator) -> Tensor:
        chosen = self.draw(generator)
        labels = self.labels[chosen]
        dropped = torch.rand(len(labels), generator=generator) < self.recipe.class_dropout
        labels = torch.where(dropped, self.recipe.network.num_classes, labels)
        return self._loss(network, self.images[chosen], labels, generator)

    def validation_loss(self, network: Network, generator: torch.Generator) -> Tensor:
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

    def _loss(self, network: Network, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        x, t, v = self.denoising.noised(self.pixels(images), generator)
        with self.autocast():
            output = network(x, t, labels.to(self.device))
        return (output.float() - v).square().mean()
