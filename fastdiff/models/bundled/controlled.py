"""The bundled latent model with a ControlNet (Zhang et al. 2023) beside it."""

from __future__ import annotations

from torch import Tensor

from fastdiff.models.bundled.conditioned import PromptLatentDiffusion
from fastdiff.models.controlnet import ControlledUNet, ControlNet
from fastdiff.models.info import ModelInfo
from fastdiff.models.text import TextEncoder

HINT = "edges"


class EdgeLatentDiffusion(ControlledUNet):
    """`model(z, t, context, y, edges=edges)`: a latent model that is given edges, (B, 1, H, W) with 1 on an edge.

    Without edges it is the latent model `base`, whose `text`, `encode` and `decode` it has. net: a ControlNet of base's
    U-Net.
    """

    info: ModelInfo  # of a model from fastdiff.load
    unet: PromptLatentDiffusion

    def __init__(self, base: PromptLatentDiffusion, net: ControlNet) -> None:
        super().__init__(base, {HINT: net})

    @property
    def base(self) -> PromptLatentDiffusion:
        """The latent model."""
        return self.unet

    @property
    def net(self) -> ControlNet:
        """The ControlNet."""
        net = self.controls[HINT]
        assert isinstance(net, ControlNet)
        return net

    @property
    def text(self) -> TextEncoder:
        """The encoder of prompts."""
        return self.unet.text

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """As of `LatentDiffusion`."""
        return self.unet.encode(x, noise)

    def decode(self, z: Tensor) -> Tensor:
        """As of `LatentDiffusion`."""
        return self.unet.decode(z)
