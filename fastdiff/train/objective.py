"""What a run minimises: a network and the loss of a batch. The loop around it is in fastdiff.train.loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.train.emoji_data import EmojiData
from fastdiff.train.recipes import Run

Network = Callable[..., Tensor]


class Objective(ABC):
    """A recipe on its data.

    images, validation_images: (N, 3, size, size) uint8, without and with the held-out emoji. weights: (N,) how often
    each of `images` is drawn. fingerprint: what runs on the same data have in common. validated_on: of what the
    validation loss is.
    """

    validated_on = "held-out emoji"

    def __init__(self, recipe: Run, data: EmojiData, *, device: torch.device | str = "cpu") -> None:
        expect(
            recipe.precision in ("bfloat16", "float32"),
            f"precision must be bfloat16 or float32, got {recipe.precision!r}",
        )
        self.recipe, self.data, self.device = recipe, data, torch.device(device)
        self.held_out = torch.from_numpy(data.held_out)
        images = torch.from_numpy(data.images)
        self.images, self.validation_images = images[~self.held_out], images[self.held_out]
        self.weights = torch.from_numpy(data.weights)[~self.held_out]
        self.fingerprint = data.fingerprint()

    @abstractmethod
    def make_network(self) -> nn.Module:
        """The network before its first step, from torch's generator."""

    @abstractmethod
    def loss(self, network: Network, generator: torch.Generator) -> Tensor:
        """Of one batch of `recipe.batch` pictures, all randomness from the generator."""

    @abstractmethod
    def validation_loss(self, network: Network, generator: torch.Generator) -> Tensor:
        """On the held-out emoji."""

    @abstractmethod
    def pictures(self, network: nn.Module) -> tuple[Tensor, int]:
        """What shows how far the network is: pictures (N, 3, H, W) in [-1, 1], and how many are in a row."""

    def remarks(self, network: nn.Module) -> str:
        """What else is worth reporting of the averaged network beside its loss."""
        return ""

    def draw(self, generator: torch.Generator) -> Tensor:
        """Numbers of the pictures of a batch, (batch,)."""
        return torch.multinomial(self.weights, self.recipe.batch, replacement=True, generator=generator)

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 to [-1, 1] on the device, channels last."""
        return images.to(self.device).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)

    def autocast(self) -> AbstractContextManager:
        """Where the network runs in the recipe's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16")
