"""Training of a KL autoencoder (Rombach et al. 2022, Section 3.1; Kingma & Welling 2014)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.models.autoencoder import AutoencoderKL, Posterior
from fastdiff.train.emoji.data import EmojiData
from fastdiff.train.emoji.objective import EmojiObjective
from fastdiff.train.emoji.recipes import AutoencoderRecipe

SHOWN_IN_A_ROW = 12


class Autoencoding(EmojiObjective):
    """Mean absolute and mean squared error of the pictures, and a small KL penalty on the latents."""

    recipe: AutoencoderRecipe

    def __init__(self, recipe: AutoencoderRecipe, data: EmojiData, *, device: torch.device | str = "cpu") -> None:
        super().__init__(recipe, data, device=device)

    def make_network(self) -> nn.Module:
        return AutoencoderKL(self.recipe.network)

    def loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        x = self.pixels(self._augment(self.images[self.draw(generator)], generator))
        return self._loss(network, x, generator)

    def validation_loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        return self._loss(network, self.pixels(self.validation_images), generator)

    def pictures(self, network: nn.Module) -> tuple[Tensor, int]:
        """Held-out emoji, each row above its reconstructions."""
        step = max(1, len(self.validation_images) // 48)
        x = self.pixels(self.validation_images[::step][:48])
        with torch.inference_mode():
            y = network(x)
        rows = zip(x.split(SHOWN_IN_A_ROW), y.split(SHOWN_IN_A_ROW))
        return torch.cat([part for pair in rows for part in pair]), SHOWN_IN_A_ROW

    def remarks(self, network: nn.Module) -> str:
        return f"PSNR {self.psnr(network):.2f} dB"

    def psnr(self, network: nn.Module) -> float:
        """Mean over the held-out emoji of the peak signal-to-noise ratio in decibels, values clipped to [-1, 1]."""
        with torch.inference_mode():
            x = self.pixels(self.validation_images)
            errors = (network(x).clamp(-1, 1) - x).square().mean((1, 2, 3))  # type: ignore[operator]
            return float((10 * torch.log10(4 / errors)).mean())

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Moved by up to max_shift pixels, half of them mirrored; white comes in at the borders."""
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        shift, size = self.recipe.max_shift, self.recipe.size
        offsets = torch.randint(0, 2 * shift + 1, (len(images), 2), generator=generator).tolist()
        padded = F.pad(images, (shift,) * 4, value=255)
        return torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(padded, offsets)])

    def _loss(self, network: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
        assert isinstance(network, AutoencoderKL)
        with self.autocast():
            posterior = Posterior(network.encode(x).moments.float())
            noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
            y = network.decode(posterior.sample(noise))
        error = y.float() - x
        return error.abs().mean() + error.square().mean() + self.recipe.kl_weight * kl_divergence(posterior)


def kl_divergence(posterior: Posterior) -> Tensor:
    """From the standard normal distribution, the mean of a latent in nats (Kingma & Welling 2014, Appendix B)."""
    return 0.5 * (posterior.mean.square() + posterior.log_variance.exp() - 1 - posterior.log_variance).mean()
