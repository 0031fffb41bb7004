"""What the objectives of the emoji models share: pictures and weights, those to train on and those held out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastdiff.runtime.choice import use
from fastdiff.train.emoji.data import EmojiData
from fastdiff.train.emoji.recipes import EmojiRun
from fastdiff.train.objective import Objective


class EmojiObjective(Objective):
    """A recipe on the emoji.

    images, validation_images: (N, 3, size, size) uint8, without and with the held-out emoji. weights: (N,) how often
    each of `images` is drawn.
    """

    recipe: EmojiRun
    memory_format = torch.channels_last
    validated_on = "held-out emoji"

    def __init__(self, recipe: EmojiRun, data: EmojiData, *, device: torch.device | str = "cpu") -> None:
        super().__init__(recipe, data.fingerprint(), device=device)
        self.data = data
        self.held_out = torch.from_numpy(data.held_out)
        images = torch.from_numpy(data.images)
        self.images, self.validation_images = images[~self.held_out], images[self.held_out]
        self.weights = torch.from_numpy(data.weights)[~self.held_out]

    @abstractmethod
    def pictures(self, network: nn.Module) -> tuple[Tensor, int]:
        """What shows how far the network is: pictures (N, 3, H, W) in [-1, 1], and how many are in a row."""

    def comparison(self, network: nn.Module) -> list[dict[str, Any]]:
        """Of a student: it and its teacher in numbers, a row for each way to sample; nothing of others."""
        return []

    @contextmanager
    def while_training(self) -> Iterator[None]:
        """Attention as matrix products and a softmax: with the few pixels there are, its backward pass takes a fraction
        of the time of torch's fused one on the CPU."""
        with use("reference"), sdpa_kernel(SDPBackend.MATH):
            yield

    def draw(self, generator: torch.Generator) -> Tensor:
        """Numbers of the pictures of a batch, (batch,)."""
        return torch.multinomial(self.weights, self.recipe.batch, replacement=True, generator=generator)

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 to [-1, 1] on the device, channels last."""
        return images.to(self.device).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
