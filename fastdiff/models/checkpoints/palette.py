"""Checkpoints of Janspiry/Palette-Image-to-Image-Diffusion-Models, as saved with the schedule's buffers beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from fastdiff.models.checkpoints.guided_diffusion import check_heads
from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register
from fastdiff.models.checkpoints.openai_unet import fields_of, infer_unet, original_unet
from fastdiff.models.palette import NAMES, Palette, PaletteConfig

_THEIRS = {ours: theirs for theirs, ours in NAMES.items()}


@register
class PaletteLayout(Layout):
    """The class `UNet` of guided_diffusion_modules: ADM's names, but for the embedding of the noise level."""

    name = "palette"
    about = "Palette's U-Net"
    fields: ClassVar = fields_of(PaletteConfig)
    parts: ClassVar = {"unet": "denoise_fn."}
    markers = (
        "cond_embed.0.weight",
        "input_blocks.0.0.weight",
        "input_blocks.1.0.in_layers.0.weight",
        "output_blocks.0.0.in_layers.0.weight",
        "out.2.weight",
    )

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        check_heads(checkpoint)
        tensors = {key.replace("cond_embed.", "time_embed."): value for key, value in checkpoint.tensors.items()}
        config = {NAMES.get(field, field): value for field, value in checkpoint.config.items()}
        found = infer_unet(replace(checkpoint, tensors=tensors, config=config))
        told = {_THEIRS.get(field, field): value for field, value in found.items()}
        return {field: value for field, value in told.items() if field in self.fields}

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return Palette(PaletteConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        if name.startswith("time_embedding."):
            return name.replace("time_embedding.", "cond_embed.")
        heads = PaletteConfig(**config).adm().heads
        return original_unet(name, heads, heads_first=not config["use_new_attention_order"])
