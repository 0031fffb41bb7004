"""Palette (Saharia et al. 2022, Image-to-Image Diffusion Models): ADM's U-Net that sees a condition and the noise
level; colorisation, inpainting, uncropping, JPEG restoration; in the form of Janspiry's implementation."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from fastdiff.models.adm import ADM, ADMConfig
from fastdiff.models.sr3 import beside, levels

# The original's names of ADM's arguments.
NAMES = {
    "in_channel": "in_channels",
    "inner_channel": "model_channels",
    "out_channel": "out_channels",
    "res_blocks": "num_res_blocks",
    "attn_res": "attention_resolutions",
    "channel_mults": "channel_mult",
}


@dataclass(frozen=True)
class PaletteConfig:
    """The arguments of `UNet` in guided_diffusion_modules: those of ADM with other names and defaults.

    in_channel: of the condition and the noisy picture. attn_res: factors by which the resolution is halved where there
    is attention. image_size, use_checkpoint and use_fp16 change nothing here.
    """

    in_channel: int
    inner_channel: int
    out_channel: int
    res_blocks: int
    attn_res: tuple[int, ...]
    image_size: int | None = None
    dropout: float = 0.0
    channel_mults: tuple[float, ...] = (1, 2, 4, 8)
    conv_resample: bool = True
    use_checkpoint: bool = False
    use_fp16: bool = False
    num_heads: int = 1
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    use_new_attention_order: bool = False

    def adm(self) -> ADMConfig:
        """The same with ADM's names."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return ADMConfig(**{NAMES.get(name, name): value for name, value in given.items()})


class Palette(ADM):
    """Noise-prediction network: `model(x, t, image=condition)` -> (B, out_channel, H, W).

    x: (B, C, H, W), the noisy picture, of which an image that is not given is the first part. t: (B,) or (B, 1), the
    noise level gamma in (0, 1), the cumulative product of 1 - beta. image: (B, in_channel - C, H, W), the condition.
    Sampled with prediction=fastdiff.prediction.of_noise_level(2). Raises ValueError where these do not fit.
    """

    def __init__(self, config: PaletteConfig) -> None:
        super().__init__(config.adm())

    def forward(  # type: ignore[override]
        self, x: Tensor, t: Tensor, image: Tensor | None = None, **options: Any
    ) -> Tensor:
        x = beside(x, image, self.config.in_channels)
        return super().forward(x, levels(x, t), **options)
