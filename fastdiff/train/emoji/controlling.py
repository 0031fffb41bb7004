"""Training of a ControlNet (Zhang et al. 2023) for edges, beside a latent model that stays as it is."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

import fastdiff
from fastdiff.models.bundled.conditioned import PromptLatentDiffusion
from fastdiff.models.bundled.controlled import HINT, EdgeLatentDiffusion
from fastdiff.models.controlnet import ControlNet
from fastdiff.models.edges import canny
from fastdiff.models.ldm import LDMUNet
from fastdiff.train.emoji.data import EmojiData
from fastdiff.train.emoji.objective import EmojiObjective
from fastdiff.train.emoji.pixels import VALIDATION_DRAWS
from fastdiff.train.emoji.recipes import ControlRecipe
from fastdiff.train.losses import denoising_loss
from fastdiff.train.teacher import weights_digest

SHOWN = 12


class EdgeControl(EmojiObjective):
    """The edges of each picture, half of them mirrored, beside its name.

    base: the model that is controlled, which knows the words of all names and all pictures; those that are held out
    here are unknown to the ControlNet alone.
    """

    recipe: ControlRecipe

    def __init__(
        self, recipe: ControlRecipe, data: EmojiData, base: PromptLatentDiffusion, *, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(recipe, data, device=device)
        self.base = base.to(self.device).eval().requires_grad_(False)
        self.process = recipe.process()
        self.known = torch.nonzero(~self.held_out)[:, 0]
        parts = [self.pixels(part) for part in torch.from_numpy(data.images).split(64)]
        self.edges = torch.cat([canny(part) > 0 for part in parts])  # (N, 1, H, W)
        with torch.inference_mode():
            mirrored = (part.flip(-1).contiguous(memory_format=torch.channels_last) for part in parts)
            latents = [torch.cat([self.base.encode(part) for part in both]) for both in (parts, mirrored)]
        self.latents = torch.stack(latents).clone()  # (2, N, C, h, w), as they are and mirrored
        tokenizer = base.info.tokenizer  # type: ignore[attr-defined]
        self.tokens = torch.tensor([tokenizer.tokens(name) for name in data.names])
        self.no_tokens = torch.tensor(tokenizer.tokens(""))
        known = "\n".join([self.fingerprint, *data.names, weights_digest(self.base)])
        self.fingerprint = hashlib.sha256(known.encode()).hexdigest()

    def make_network(self) -> nn.Module:
        unet = self.base.unet
        assert isinstance(unet, LDMUNet)
        net = ControlNet.copy_of(unet, hint_channels=1, hint_widths=self.recipe.hint_widths).requires_grad_(True)
        return EdgeLatentDiffusion(self.base, net)

    def loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        chosen = self.known[self.draw(generator)]
        dropped = torch.rand(len(chosen), 1, generator=generator) < self.recipe.class_dropout
        mirrored = torch.rand(len(chosen), generator=generator) < 0.5
        tokens = torch.where(dropped, self.no_tokens, self.tokens[chosen])
        edges = torch.where(mirrored[:, None, None, None], self.edges[chosen].flip(-1), self.edges[chosen])
        return self._loss(network, self.latents[mirrored.long(), chosen], tokens, edges, generator)

    def validation_loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        return self._held_out_loss(network, generator, self.edges[self.held_out])

    def remarks(self, network: nn.Module) -> str:
        generator = torch.Generator().manual_seed(self.recipe.seed)
        with torch.inference_mode():
            without = float(self._held_out_loss(network, generator, None))
        return f"without the edges {without:.4f}, edges found again {100 * self.agreement(network):.0f}%"

    def pictures(self, network: nn.Module) -> tuple[Tensor, int]:
        """Held-out emoji: rows of their edges, of samples with the name and the edges, of samples with the edges alone,
        and of the originals."""
        chosen = torch.nonzero(self.held_out)[:, 0]
        chosen = chosen[:: max(1, len(chosen) // SHOWN)][:SHOWN]
        edges = self.edges[chosen]
        named, nameless = (self.sample(network, tokens, edges) for tokens in (self.tokens[chosen], self.no_tokens))
        shown = (1 - 2 * edges.to(named)).expand(-1, 3, -1, -1)  # black on white
        return torch.cat([shown, named, nameless, self.pixels(torch.from_numpy(self.data.images)[chosen])]), len(chosen)

    def agreement(self, network: nn.Module, *, controlled: bool = True) -> float:
        """Of the edges of the held-out emoji, the share that samples without a prompt have within a pixel: the base
        knows these emoji by their names. controlled: whether the samples are given the edges."""
        edges = self.edges[self.held_out]
        samples = self.sample(network, self.no_tokens, edges, controlled=controlled)
        found = nn.functional.max_pool2d(canny(samples), 3, stride=1, padding=1) > 0
        return float((found.cpu() & edges).sum() / edges.sum())

    def sample(self, network: nn.Module, tokens: Tensor, edges: Tensor, *, controlled: bool = True) -> Tensor:
        """Pictures of prompts (N, length), or one for all, and edges (N, 1, H, W), 20 steps, guidance 3, always of the
        same noise."""
        assert isinstance(network, EdgeLatentDiffusion)
        hints = {HINT: edges.to(self.device).float()} if controlled else {}
        with torch.inference_mode():
            cond, uncond = (
                dict(zip(("context", "y"), network.text(part.expand(len(edges), -1).to(self.device))))
                for part in (tokens, self.no_tokens)
            )
        z = fastdiff.sample(
            network,
            (len(edges), *self.latents.shape[2:]),
            schedule=self.recipe.schedule,
            prediction=self.recipe.prediction,
            steps=20,
            guidance=3.0,
            cond={**cond, **hints},
            uncond={**uncond, **hints},
            seed=0,
        )
        with torch.inference_mode():
            return network.decode(z)

    def _held_out_loss(self, network: nn.Module, generator: torch.Generator, edges: Tensor | None) -> Tensor:
        z, tokens = self.latents[0, self.held_out], self.tokens[self.held_out]
        given = None if edges is None else edges.repeat(VALIDATION_DRAWS, 1, 1, 1)
        return self._loss(
            network, z.repeat(VALIDATION_DRAWS, 1, 1, 1), tokens.repeat(VALIDATION_DRAWS, 1), given, generator
        )

    def _loss(
        self, network: nn.Module, z: Tensor, tokens: Tensor, edges: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        assert isinstance(network, EdgeLatentDiffusion)
        z = z.contiguous(memory_format=torch.channels_last)
        hint = None if edges is None else edges.to(self.device).float()
        with self.autocast(), torch.no_grad():
            context, y = network.text(tokens.to(self.device))
        given = {"context": context, "y": y, HINT: hint}
        return denoising_loss(self.in_precision(network), self.process, z, generator, **given).mean()
