"""Training of an upsampler: the large picture from the small one, which noise has been added to."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdiff
from fastdiff.models.bundled.upsampler import Upsampler
from fastdiff.train.emoji.data import EmojiData
from fastdiff.train.emoji.objective import EmojiObjective
from fastdiff.train.emoji.pixels import VALIDATION_DRAWS
from fastdiff.train.emoji.recipes import UpsamplerRecipe
from fastdiff.train.losses import denoising_loss
from fastdiff.train.losses.progressive import scales
from fastdiff.train.terms import normal

SHOWN, SHOWN_IN_A_ROW = 16, 8


class Upsampling(EmojiObjective):
    """Crops of the pictures, half of them mirrored, with the same crop of the small picture as the condition.

    The small picture has noise of a random time (Ho et al. 2021, Cascaded Diffusion Models, Section 4.2), so that the
    network works on what another one has drawn.
    """

    recipe: UpsamplerRecipe

    def __init__(self, recipe: UpsamplerRecipe, data: EmojiData, *, device: torch.device | str = "cpu") -> None:
        super().__init__(recipe, data, device=device)
        self.process = recipe.process()
        self.small, self.validation_small = (
            smaller(images, recipe.small_size) for images in (self.images, self.validation_images)
        )

    def make_network(self) -> nn.Module:
        return Upsampler(self.recipe.network)

    def loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        chosen = self.draw(generator)
        images, small = self.crops(self.images[chosen], self.small[chosen], generator)
        return self._loss(network, images, small, generator)

    def validation_loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        images, small = (
            part.repeat(VALIDATION_DRAWS, 1, 1, 1) for part in (self.validation_images, self.validation_small)
        )
        images, small = self.crops(images, small, generator)
        return self._loss(network, images, small, generator)

    def pictures(self, network: nn.Module) -> tuple[Tensor, int]:
        """Held-out emoji: a row of small pictures, a row of what the network makes of them, a row of the originals."""
        step = max(1, len(self.validation_images) // SHOWN)
        large, small = (self.pixels(part[::step][:SHOWN]) for part in (self.validation_images, self.validation_small))
        made = self.sample(network, small)
        enlarged = F.interpolate(small, scale_factor=self.recipe.network.factor)
        rows = zip(*(part.split(SHOWN_IN_A_ROW) for part in (enlarged, made, large)))
        return torch.cat([part for row in rows for part in row]), SHOWN_IN_A_ROW

    def remarks(self, network: nn.Module) -> str:
        ours, bicubic = self.psnr(network, every=9)
        return f"PSNR {ours:.2f} dB, bicubic {bicubic:.2f} dB"

    def psnr(self, network: nn.Module, *, every: int = 1) -> tuple[float, float]:
        """Mean peak signal-to-noise ratios in decibels, values clipped to [-1, 1], over the held-out emoji, or every
        so many of them: of the network's samples, and of bicubic interpolation."""
        large, small = (self.pixels(part[::every]) for part in (self.validation_images, self.validation_small))
        bicubic = F.interpolate(small, large.shape[2:], mode="bicubic", align_corners=False)
        made = torch.cat([self.sample(network, part) for part in small.split(SHOWN)])
        ours, theirs = ((x.clamp(-1, 1) - large).square().mean((1, 2, 3)) for x in (made, bicubic))
        return float((10 * torch.log10(4 / ours)).mean()), float((10 * torch.log10(4 / theirs)).mean())

    def sample(self, network: nn.Module, small: Tensor) -> Tensor:
        """Large pictures of small ones without noise, 10 steps, always of the same noise."""
        return fastdiff.sample(
            network,
            (len(small), *small.shape[1:2], self.recipe.size, self.recipe.size),
            schedule=self.recipe.schedule,
            prediction=self.recipe.prediction,
            steps=10,
            cond={"image": small},
            seed=0,
        )

    def crops(self, images: Tensor, small: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same part of large and small pictures, at a place and mirrored by chance."""
        factor, side = self.recipe.network.factor, self.recipe.crop // self.recipe.network.factor
        places = torch.randint(0, small.shape[-1] - side + 1, (len(small), 2), generator=generator).tolist()
        mirrored = (torch.rand(len(small), generator=generator) < 0.5)[:, None, None, None]

        def cropped(pictures: Tensor, scale: int) -> Tensor:
            parts = [
                p[:, scale * y : scale * (y + side), scale * x : scale * (x + side)]
                for p, (y, x) in zip(pictures, places)
            ]
            stacked = torch.stack(parts)
            return torch.where(mirrored, stacked.flip(-1), stacked)

        return cropped(images, factor), cropped(small, 1)

    def _loss(self, network: nn.Module, images: Tensor, small: Tensor, generator: torch.Generator) -> Tensor:
        x0, clean = self.pixels(images), self.pixels(small)
        schedule = self.process.schedule
        # Not in equal parts, as the times of the loss are: the two would go together.
        times = torch.rand(len(clean), generator=generator, dtype=torch.float64) * self.recipe.augment
        points = schedule.points(times.numpy())
        alpha, sigma = scales(points, clean)
        level = torch.tensor([schedule.model_time(p.t) for p in points]).to(clean)
        noisy = alpha * clean + sigma * normal(clean, generator)
        network = self.in_precision(network)  # type: ignore[assignment]
        return denoising_loss(network, self.process, x0, generator, image=noisy, level=level).mean()


def smaller(images: Tensor, size: int) -> Tensor:
    """(N, 3, H, W) uint8 to (N, 3, size, size), as the pictures of that size are drawn."""
    from PIL import Image

    resized = [
        np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))
        for image in images.permute(0, 2, 3, 1).numpy()
    ]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()
