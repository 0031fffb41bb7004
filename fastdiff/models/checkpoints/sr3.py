"""Checkpoints of Janspiry/Image-Super-Resolution-via-Iterative-Refinement (SR3), as saved with the schedule's buffers
beside."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register, renamed
from fastdiff.models.checkpoints.openai_unet import fields_of, flat
from fastdiff.models.sr3 import SR3Config, SR3UNet

# Ours to theirs.
_OUTER = ((r"conv_in\.", "downs.0."), (r"norm_out\.", "final_conv.block.0."), (r"conv_out\.", "final_conv.block.3."))
_RESIDUAL = (
    (r"norm1\.", "res_block.block1.block.0."),
    (r"conv1\.", "res_block.block1.block.3."),
    (r"norm2\.", "res_block.block2.block.0."),
    (r"conv2\.", "res_block.block2.block.3."),
    (r"skip\.", "res_block.res_conv."),
    (r"norm\.", "attn.norm."),
    (r"qkv\.", "attn.qkv."),
    (r"proj\.", "attn.out."),
)
_EMBEDDING = {"sr3": ("noise_level_mlp.", "res_block.noise_func.noise_func.0."),
              "ddpm": ("time_mlp.", "res_block.mlp.1.")}  # fmt: skip


@register
class SR3Layout(Layout):
    """The classes `UNet` of sr3_modules and ddpm_modules; the keys tell which."""

    name = "sr3"
    about = "SR3's U-Net"
    fields: ClassVar = fields_of(SR3Config)
    parts: ClassVar = {"unet": "denoise_fn."}
    markers = ("downs.0.weight", "downs.1.res_block.block1.block.0.weight", "mid.0.attn.qkv.weight",
               "final_conv.block.3.weight")  # fmt: skip

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        inner, in_channel, *_ = checkpoint.shape("downs.0.weight")
        kinds = ["conv" if f"downs.{index}.conv.weight" in checkpoint.tensors else "block"
                 for index in range(1, checkpoint.count("downs."))]  # fmt: skip
        blocks = kinds.index("conv") if "conv" in kinds else len(kinds)
        levels = [f"downs.{index}." for index in range(1, len(kinds) + 1, blocks + 1)]  # their first blocks
        widths = [checkpoint.shape(f"{first}res_block.block1.block.3.weight")[0] for first in levels]
        size = checkpoint.config.get("image_size", self.fields["image_size"])
        attended = tuple(
            size >> level for level, first in enumerate(levels) if f"{first}attn.qkv.weight" in checkpoint.tensors
        )
        given = checkpoint.config.get("attn_res")
        reached = {size >> level for level in range(len(levels))}
        if given is not None and set(given) & reached == set(attended):
            attended = given
        keys = checkpoint.tensors.keys()
        network = "sr3" if "noise_level_mlp.1.weight" in keys else "ddpm"
        out_channel = checkpoint.shape("final_conv.block.3.weight")[0]
        if checkpoint.config.get("out_channel", out_channel) is None and out_channel == in_channel:
            out_channel = None  # type: ignore[assignment]
        return {
            "in_channel": in_channel,
            "out_channel": out_channel,
            "inner_channel": inner,
            "channel_mults": tuple(width // inner for width in widths),
            "res_blocks": blocks,
            "attn_res": attended,
            "network": network,
            "with_time_emb": network == "sr3" or "time_mlp.1.weight" in keys,
        }

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return SR3UNet(SR3Config(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        embedding, shift = _EMBEDDING[config["network"]]
        if name.startswith("time_embedding."):
            _, index, kind = name.split(".")
            return f"{embedding}{int(index) + 1}.{kind}"
        where = re.match(r"(down|middle|up)\.(?:(\d+)\.)?(\d+)\.(.*)", name)
        if where is None:
            return renamed(name, _OUTER)
        place, stage, layer, inner = where.groups()
        theirs = renamed(inner, ((r"shift\.", shift), *_RESIDUAL))
        if place == "middle":
            key = f"mid.{0 if layer in '01' else 1}.{theirs}"
        elif place == "down":
            key = f"downs.{int(stage) + 1}.{theirs}"
        else:
            group, index = divmod(int(stage), config["res_blocks"] + 1)
            last = inner.startswith("conv.")
            key = f"ups.{group * (config['res_blocks'] + 2) + index + last}.{theirs}"
        return Derived((key,), flat) if inner in ("qkv.weight", "proj.weight") else key

    def unused(self, key: str, config: Mapping[str, Any]) -> bool:
        return key == "time_mlp.0.inv_freq"  # the table of `step_embedding`
