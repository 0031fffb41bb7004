"""Training of students: networks that need fewer steps than the bundled model they learn from.

The guidance of the teacher is distilled with it, so that a student takes one call a step. It begins as its teacher.
"""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastdiff.models.autoencoder import AutoencoderKL
from fastdiff.models.bundled import BundledModel
from fastdiff.models.bundled.conditioned import ClassLatentDiffusion
from fastdiff.models.unet import UNet
from fastdiff.train.emoji.comparison import beside, compare
from fastdiff.train.emoji.data import EmojiData
from fastdiff.train.emoji.latents import ClassObjective
from fastdiff.train.emoji.objective import EmojiObjective
from fastdiff.train.emoji.pixels import PixelDiffusion
from fastdiff.train.emoji.recipes import LatentProgressiveRecipe
from fastdiff.train.losses import guided_consistency_loss, progressive_loss
from fastdiff.train.teacher import guided, weights_digest

_Network = TypeVar("_Network", bound=nn.Module)


def frozen(network: _Network, device: torch.device) -> _Network:
    """On the device, not to be trained."""
    return network.to(device).eval().requires_grad_(False)


class StudentObjective(EmojiObjective):
    """What students share, beside the objective of their kind. original: the bundled model; teacher: what is distilled,
    which has the guidance in it unless it is the original itself; guided: its calls, with guidance."""

    recipe: Any
    original: Any

    def learn_from(self, original: BundledModel, teacher: nn.Module) -> None:
        """To be called last in __init__."""
        self.original, self.teacher = frozen(original, self.device), frozen(teacher, self.device)
        self.fingerprint = hashlib.sha256((self.fingerprint + weights_digest(teacher)).encode()).hexdigest()
        scale = self.recipe.guidance if isinstance(self.recipe.teacher, str) else 1.0
        none = torch.tensor([len(self.data.classes)], device=self.device)
        self.guided = guided(self.in_precision(self.teacher), scale, {"y": none})

    def make_network(self) -> nn.Module:
        network = super().make_network()  # type: ignore[safe-super]
        network.load_state_dict(self.teacher.state_dict())
        return network

    def pictures(self, network: nn.Module) -> tuple[Tensor, int]:
        """The bundled model and the student."""
        return beside(self.original, network, self.recipe.sampling)

    def comparison(self, network: nn.Module) -> list[dict[str, Any]]:
        return compare(self.original, network, self.recipe.sampling)


class PixelStudent(StudentObjective, PixelDiffusion):
    """A student of a bundled U-Net on pixels."""

    def __init__(
        self, recipe: Any, data: EmojiData, original: UNet, teacher: UNet, *, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(recipe, data, device=device)
        self.learn_from(original, teacher)


class PixelProgressive(PixelStudent):
    """Half as many DDIM steps as the teacher."""

    def _loss(self, network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        x0, y = self.pixels(images), labels.to(self.device)
        steps = self.recipe.student_steps
        return progressive_loss(
            self.in_precision(network), self.process, x0, generator, teacher=self.guided, steps=steps, y=y
        ).mean()


class PixelConsistency(PixelStudent):
    """The network's x0 is the end of the teacher's trajectory, which the teacher itself is asked for: all the way."""

    def _loss(self, network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        x0, y = self.pixels(images), labels.to(self.device)
        levels = self.recipe.levels
        return guided_consistency_loss(
            self.in_precision(network),
            self.process,
            x0,
            generator,
            teacher=self.guided,
            levels=levels,
            ahead=levels,
            y=y,
        ).mean()


class LatentProgressive(StudentObjective, ClassObjective):
    """Half as many DDIM steps as the teacher, on latents."""

    def __init__(
        self,
        recipe: LatentProgressiveRecipe,
        data: EmojiData,
        original: ClassLatentDiffusion,
        teacher: ClassLatentDiffusion,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        assert isinstance(original.autoencoder, AutoencoderKL)
        super().__init__(recipe, data, original.autoencoder, scale_factor=original.scale_factor, device=device)
        self.learn_from(original, teacher)

    def denoise(self, network: nn.Module, z: Tensor, generator: torch.Generator, **condition: Any) -> Tensor:
        """The error against two steps of the teacher, at random ones of the student's times."""
        return progressive_loss(
            self.in_precision(network),
            self.process,
            z.contiguous(memory_format=torch.channels_last),
            generator,
            teacher=self.guided,
            steps=self.recipe.student_steps,
            **{name: value.to(self.device) for name, value in condition.items()},
        ).mean()
