"""Checkpoints of lllyasviel/ControlNet (cldm): the ControlNet alone, or part="controlnet" of a file that also holds the
U-Net (part="unet") and the autoencoder (part="vae")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from fastdiff.models.checkpoints.latent_diffusion import PARTS, infer_heads, infer_transformers
from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register, renamed
from fastdiff.models.checkpoints.openai_unet import fields_of, infer_unet, original_unet
from fastdiff.models.controlnet import ControlNet, ControlNetConfig

# Arguments of the U-Net that cldm's ControlNet does not have.
_ABSENT = ("out_channels", "num_classes", "adm_in_channels", "disable_middle_transformer", "hint_widths",
           "spatial_transformer_attn_type")  # fmt: skip
# Ours to theirs.
_OWN = (
    (r"hint\.", "input_hint_block."),
    (r"zero_convs\.(\d+)\.", r"zero_convs.\1.0."),
    (r"zero_middle\.", "middle_block_out.0."),
)


@register
class ControlNetLayout(Layout):
    """The class `ControlNet` of cldm.py."""

    name = "controlnet"
    about = "ControlNet of Stable Diffusion 1 and 2"
    fields: ClassVar = {
        field: default for field, default in fields_of(ControlNetConfig).items() if field not in _ABSENT
    }
    parts: ClassVar = PARTS
    markers = (
        "time_embed.0.weight",
        "input_blocks.0.0.weight",
        "input_hint_block.0.weight",
        "zero_convs.0.0.weight",
        "middle_block_out.0.weight",
    )

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        found = {**infer_unet(checkpoint), **infer_transformers(checkpoint)}
        found["hint_channels"] = checkpoint.shape("input_hint_block.0.weight")[1]
        found |= infer_heads(checkpoint, found)
        return {field: value for field, value in found.items() if field not in _ABSENT}

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return ControlNet(_config(config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        theirs = renamed(name, _OWN)
        if theirs != name:
            return theirs
        return original_unet(name, _config(config).heads, heads_first=not config["use_new_attention_order"])


def _config(config: Mapping[str, Any]) -> ControlNetConfig:
    return ControlNetConfig(out_channels=config["in_channels"], **config)
