"""Training of diffusion models on the latents of an autoencoder that stays as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fastdiff
from fastdiff.models.autoencoder import AutoencoderKL
from fastdiff.models.bundled.conditioned import ClassLatentDiffusion, PromptLatentDiffusion
from fastdiff.models.bundled.eight_bits import rounded
from fastdiff.models.bundled.emoji_prompts import EMOJI_PROMPTS
from fastdiff.models.ldm import LatentDiffusion
from fastdiff.models.text import PADDING, TextConfig, Tokenizer
from fastdiff.train.emoji.data import EmojiData
from fastdiff.train.emoji.objective import EmojiObjective
from fastdiff.train.emoji.pixels import SAMPLES_A_CLASS, VALIDATION_DRAWS
from fastdiff.train.emoji.recipes import ClassRecipe, LatentRecipe, PromptRecipe
from fastdiff.train.losses import denoising_loss


class LatentObjective(EmojiObjective):
    """Means of the posteriors, computed once.

    autoencoder: rounded as it ships; all models on it get the same latents. scale_factor: of the latents;
    what gives them unit variance if None.
    """

    recipe: LatentRecipe

    def __init__(
        self,
        recipe: LatentRecipe,
        data: EmojiData,
        autoencoder: AutoencoderKL,
        *,
        scale_factor: float | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(recipe, data, device=device)
        self.autoencoder = autoencoder
        rounded(autoencoder).eval().requires_grad_(False)
        self.process = recipe.process()
        images = torch.from_numpy(data.images)
        with torch.inference_mode():
            parts = [self.autoencoder.encode(self.pixels(part)).mean for part in images.split(64)]
        latents = torch.cat(parts).contiguous()
        self.scale_factor = float(1 / latents.std()) if scale_factor is None else scale_factor
        self.latents = latents.mul(self.scale_factor).clone()
        digest = hashlib.sha256(self.fingerprint.encode())
        for tensor in self.autoencoder.state_dict().values():
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def build(self, network: LatentDiffusion) -> nn.Module:
        """The network with the autoencoder in it."""
        network.autoencoder = self.autoencoder
        return network

    def denoise(self, network: nn.Module, z: Tensor, generator: torch.Generator, **condition: Any) -> Tensor:
        """The loss at random times."""
        z = z.contiguous(memory_format=torch.channels_last)
        condition = {name: value.to(self.device) for name, value in condition.items()}
        return denoising_loss(self.in_precision(network), self.process, z, generator, **condition).mean()

    def sample(self, network: LatentDiffusion, cond: dict[str, Tensor], uncond: dict[str, Tensor], guidance: float):
        """Pictures, 20 steps, always of the same noise."""
        (count, *_), *_ = (value.shape for value in cond.values())
        z = fastdiff.sample(
            network,
            (count, *self.recipe.latent_shape),
            schedule=self.recipe.schedule,
            prediction=self.recipe.prediction,
            steps=20,
            guidance=guidance,
            cond=cond,
            uncond=uncond,
            seed=0,
        )
        with torch.inference_mode():
            return network.decode(z)


class PromptObjective(LatentObjective):
    """Each emoji by its name. All of them are trained on: the words of one that is held out would mean nothing. The
    validation loss is that of the autoencoder's held-out emoji, which this network knows."""

    recipe: PromptRecipe
    validated_on = "some of the emoji"

    def __init__(
        self, recipe: PromptRecipe, data: EmojiData, autoencoder: AutoencoderKL, *, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(recipe, data, autoencoder, device=device)
        self.images = torch.from_numpy(data.images)
        self.weights = torch.from_numpy(data.weights)
        self.tokenizer = Tokenizer.of(data.names)
        self.tokens = torch.tensor([self.tokenizer.tokens(name) for name in data.names])
        self.fingerprint = hashlib.sha256((self.fingerprint + "\n".join(data.names)).encode()).hexdigest()

    def make_network(self) -> nn.Module:
        recipe, tokenizer = self.recipe, self.tokenizer
        text = TextConfig(len(tokenizer.words), tokenizer.length, recipe.text_width, recipe.text_layers)
        return self.build(PromptLatentDiffusion(recipe.network, text, recipe.autoencoder.network, self.scale_factor))

    def loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        chosen = self.draw(generator)
        tokens = self.tokens[chosen]
        words = torch.rand(tokens.shape, generator=generator) < self.recipe.word_dropout
        prompts = torch.rand(len(tokens), 1, generator=generator) < self.recipe.class_dropout
        return self._loss(network, self.latents[chosen], without(tokens, words | prompts), generator)

    def validation_loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        z, tokens = (part[self.held_out] for part in (self.latents, self.tokens))
        return self._loss(network, z.repeat(VALIDATION_DRAWS, 1, 1, 1), tokens.repeat(VALIDATION_DRAWS, 1), generator)

    def pictures(self, network: nn.Module) -> tuple[Tensor, int]:
        """One sample of each of EMOJI_PROMPTS."""
        assert isinstance(network, PromptLatentDiffusion)
        known = [p for p in EMOJI_PROMPTS if set(p.split()) <= set(self.tokenizer.words)] or [""]
        cond, uncond = (self._condition(network, prompts) for prompts in (known, [""] * len(known)))
        return self.sample(network, cond, uncond, guidance=3.0), 8

    def _condition(self, network: PromptLatentDiffusion, prompts: Sequence[str]) -> dict[str, Tensor]:
        tokens = torch.tensor([self.tokenizer.tokens(prompt) for prompt in prompts]).to(self.device)
        with torch.inference_mode():
            return dict(zip(("context", "y"), network.text(tokens)))

    def _loss(self, network: nn.Module, z: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
        assert isinstance(network, PromptLatentDiffusion)
        with self.autocast():
            context, y = network.text(tokens.to(self.device))
        return self.denoise(network, z, generator, context=context, y=y)


class ClassObjective(LatentObjective):
    """The groups of the emoji as classes."""

    recipe: ClassRecipe

    def __init__(
        self,
        recipe: ClassRecipe,
        data: EmojiData,
        autoencoder: AutoencoderKL,
        *,
        scale_factor: float | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(recipe, data, autoencoder, scale_factor=scale_factor, device=device)
        labels = torch.from_numpy(data.labels)
        self.train_latents, self.train_labels = self.latents[~self.held_out], labels[~self.held_out]
        self.validation_latents, self.validation_labels = self.latents[self.held_out], labels[self.held_out]

    def make_network(self) -> nn.Module:
        recipe = self.recipe
        network = ClassLatentDiffusion(recipe.network, recipe.autoencoder.network, self.scale_factor)
        network.unet.eval()  # it would drop classes by torch's generator, which no checkpoint keeps
        return self.build(network)

    def loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        chosen = self.draw(generator)
        labels = self.train_labels[chosen]
        dropped = torch.rand(len(labels), generator=generator) < self.recipe.class_dropout
        labels = torch.where(dropped, self.recipe.network.num_classes, labels)
        return self.denoise(network, self.train_latents[chosen], generator, y=labels)

    def validation_loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        z = self.validation_latents.repeat(VALIDATION_DRAWS, 1, 1, 1)
        return self.denoise(network, z, generator, y=self.validation_labels.repeat(VALIDATION_DRAWS))

    def pictures(self, network: nn.Module) -> tuple[Tensor, int]:
        """A row of samples for each class."""
        assert isinstance(network, ClassLatentDiffusion)
        count = len(self.data.classes)
        labels = torch.arange(count).repeat_interleave(SAMPLES_A_CLASS).to(self.device)
        return self.sample(network, {"y": labels}, {"y": torch.full_like(labels, count)}, 4.0), SAMPLES_A_CLASS


def without(tokens: Tensor, left_out: Tensor) -> Tensor:
    """Tokens (B, length) less those marked, the rest moved together as the tokenizer would have them."""
    kept = tokens.masked_fill(left_out, PADDING)
    order = (kept == PADDING).to(torch.uint8).argsort(dim=1, stable=True)
    return kept.gather(1, order)
