"""Checkpoints of WeilunWang/semantic-diffusion-model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from fastdiff.models.checkpoints.guided_diffusion import check_heads
from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register
from fastdiff.models.checkpoints.openai_unet import fields_of, infer_unet, joined_rows, original_unet
from fastdiff.models.sdm import SDM, SDMConfig

_SPADE = "middle_block.0.in_norm.mlp_shared.0.weight"
# In blocks with SPADE's norms, ADM's names to SDM's.
_NAMES = (
    (r"\.in_layers\.0\.", ".in_norm."),
    (r"\.in_layers\.2\.", ".in_layers.1."),
    (r"\.out_layers\.0\.", ".out_norm."),
    (r"\.out_layers\.3\.", ".out_layers.2."),
    (r"_norm\.hidden\.", "_norm.mlp_shared.0."),
)


@register
class SDMLayout(Layout):
    """The class `UNetModel`: ADM's way down, SPADE's norms in the middle and on the way up."""

    name = "sdm"
    about = "SDM's U-Net with SPADE"
    fields: ClassVar = fields_of(SDMConfig)
    markers = (
        "time_embed.0.weight",
        "input_blocks.0.0.weight",
        "input_blocks.1.0.in_layers.0.weight",
        _SPADE,
        "out.2.weight",
    )

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        check_heads(checkpoint)
        as_adm = {}
        for key, value in checkpoint.tensors.items():
            if key.startswith("output_blocks."):
                key = key.replace(".in_norm.mlp_shared.0.", ".in_layers.0.").replace(".in_layers.1.", ".in_layers.2.")
            as_adm[key] = value
        found = infer_unet(replace(checkpoint, tensors=as_adm))
        return {**found, "num_classes": checkpoint.shape(_SPADE)[1]}

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return SDM(SDMConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        heads = SDMConfig(**config).heads
        found = original_unet(name, heads, heads_first=not config["use_new_attention_order"])
        if not isinstance(found, str) or not name.startswith(("middle.", "up.")):
            return found
        for pattern, theirs in _NAMES:
            found = re.sub(pattern, theirs, found)
        if ".modulation." not in found:
            return found
        return Derived(tuple(found.replace("modulation", part) for part in ("mlp_gamma", "mlp_beta")), joined_rows)
