"""The ControlNet that the config of diffusers' ControlNetModel describes: of Stable Diffusion 1, 2, XL and others."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastdiff.errors import unknown
from fastdiff.models.controlnet import HINT_CHANNELS, ControlBackbone
from fastdiff.models.parts.attention import Context
from fastdiff.models.parts.control import Control
from fastdiff.models.unet_2d_condition import ConditionEmbeddings, UNet2DConditionConfig

ORDERS = ("rgb", "bgr")


@dataclass(frozen=True)
class ControlNet2DConfig(UNet2DConditionConfig):
    """The arguments of `ControlNetModel`: those of the U-Net's way down, and of the hint.

    conditioning_channels: of the hint. controlnet_conditioning_channel_order: what the weights are for; hints are
    always in the order red, green, blue. conditioning_embedding_out_channels: see `HintEncoder`.
    global_pool_conditions: the residuals are their means over the pixels. What belongs to the way up changes nothing.
    """

    conditioning_channels: int = 3
    controlnet_conditioning_channel_order: str = "rgb"
    conditioning_embedding_out_channels: tuple[int, ...] = HINT_CHANNELS
    global_pool_conditions: bool = False


class ControlNet2D(ConditionEmbeddings, ControlBackbone):
    """`net(x, t, context, class_labels, hint=picture, ...)` -> Control: diffusers' ControlNetModel at scale 1.

    The arguments of a `UNet2DCondition`, and hint: (B, conditioning_channels, 8 H, 8 W), red first. Raises ValueError
    where these do not fit.
    """

    def __init__(self, config: ControlNet2DConfig) -> None:
        if config.controlnet_conditioning_channel_order not in ORDERS:
            order = config.controlnet_conditioning_channel_order
            raise unknown("controlnet_conditioning_channel_order", order, ORDERS)
        parts = config.parts()
        del parts["up"]
        super().__init__(
            hint_channels=config.conditioning_channels,
            hint_widths=config.conditioning_embedding_out_channels,
            pools=config.global_pool_conditions,
            **parts,
        )
        self.middle.extend(config.rest_of_middle(self.width))
        self.add_embeddings(config)
        self.flips = config.controlnet_conditioning_channel_order == "bgr"

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Context | None = None,
        class_labels: Tensor | None = None,
        *,
        hint: Tensor,
        timestep_cond: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Control:
        embedding, context = self.embed(x, t, context, class_labels, timestep_cond, text_embeds, time_ids)
        return self.run(x, embedding, context, hint.flip(1) if self.flips else hint)
