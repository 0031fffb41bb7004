"""Checkpoints of diffusers' UNet3DConditionModel and UNetMotionModel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from fastdiff.models.checkpoints.diffusers_unet import UNetFamily
from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register
from fastdiff.models.checkpoints.openai_unet import fields_of
from fastdiff.models.unet_2d import per_level
from fastdiff.models.unet_3d_condition import UNet3DCondition, UNet3DConditionConfig
from fastdiff.models.unet_motion import UNetMotion, UNetMotionConfig


class VideoLayout(UNetFamily):
    """What the two classes share: the names of a U-Net of pictures, beside which lie those of layers over frames.

    over_frames: the lists of layers over frames after residual blocks and after transformers. suffix: of the names of
    blocks.
    """

    over_frames: ClassVar[tuple[str, str]]
    suffix: ClassVar[str]

    def detect(self, checkpoint: Checkpoint) -> bool:
        return Layout.detect(self, checkpoint)

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        shape, config = checkpoint.shape, checkpoint.config
        found = {field: value for field, value in super().infer(checkpoint).items() if field in self.fields}
        levels = len(found["block_out_channels"])
        context = shape("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")[1]
        given = config.get("cross_attention_dim", context)
        found["cross_attention_dim"] = given if set(per_level(given, levels)) == {context} else context
        guidance = "time_embedding.cond_proj.weight"
        if guidance in checkpoint.tensors or config.get("time_cond_proj_dim") is not None:
            found["time_cond_proj_dim"] = shape(guidance)[1]
        return found

    def block_types(self, checkpoint: Checkpoint, levels: int) -> dict[str, Any]:
        def kind(way: str, level: int) -> str:
            attends = any(key.startswith(f"{way}_blocks.{level}.attentions.") for key in checkpoint.tensors)
            return f"{'CrossAttn' if attends else ''}{way.capitalize()}Block{self.suffix}"

        return {f"{way}_block_types": tuple(kind(way, level) for level in range(levels)) for way in ("down", "up")}

    def is_transformer(self, place: str, block: int, config: Mapping[str, Any]) -> bool:
        return True

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        if name.startswith("transformer_in."):
            picture = super().original(f"middle.1.{name.removeprefix('transformer_in.')}", config)
            return _moved(picture, "mid_block.attentions.0.", "transformer_in.")
        where = re.match(r"((?:down|up)\.\d+|middle)\.(\d+)\.(space|time)\.(.*)", name)
        if where is None:
            return super().original(name, config)
        stage, layer, over, inner = where.groups()
        number, attends = int(layer), int(layer) % 2
        convolution = re.match(r"(norms|convs)\.(\d+)\.(.*)", inner)
        # Beside a layer over frames is one of pictures with a norm, too.
        picture = super().original(f"{stage}.{number % 2}.{'norm1.weight' if convolution else inner}", config)
        pictures = "attentions" if attends else "resnets"
        if stage == "middle":
            picture = _moved(picture, f"{pictures}.0.", f"{pictures}.{number // 2}.")
        if over == "space":
            return picture
        picture = _moved(picture, f".{pictures}.", f".{self.over_frames[attends]}.")
        if convolution is None:
            return _moved(picture, ".positions", ".pos_embed.pe")
        kind, index, parameter = convolution.groups()
        place = 0 if kind == "norms" else 2 if index == "0" else 3  # dropout comes before all but the first one
        return _moved(picture, "norm1.weight", f"conv{int(index) + 1}.{place}.{parameter}")


def _moved(where: str | Derived, old: str, new: str) -> str | Derived:
    """The same with a part of its key replaced."""
    if isinstance(where, str):
        return where.replace(old, new, 1)
    return replace(where, keys=tuple(key.replace(old, new, 1) for key in where.keys))


@register
class UNet3DConditionLayout(VideoLayout):
    """UNet3DConditionModel: text to video."""

    class_name = about = "UNet3DConditionModel"
    fields: ClassVar = fields_of(UNet3DConditionConfig)
    markers = ("transformer_in.proj_in.weight", "down_blocks.0.temp_convs.0.conv1.2.weight", "conv_norm_out.weight")
    over_frames = ("temp_convs", "temp_attentions")
    suffix = "3D"

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        found = super().infer(checkpoint)
        return {**found, "attention_head_dim": checkpoint.shape("transformer_in.proj_in.weight")[0] // 8}

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return UNet3DCondition(UNet3DConditionConfig(**config))


@register
class UNetMotionLayout(VideoLayout):
    """UNetMotionModel: AnimateDiff."""

    class_name = about = "UNetMotionModel"
    fields: ClassVar = fields_of(UNetMotionConfig)
    markers = ("down_blocks.0.motion_modules.0.proj_in.weight", "time_embedding.linear_1.weight",
               "conv_norm_out.weight")  # fmt: skip
    over_frames = ("", "motion_modules")
    suffix = "Motion"

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        found, config, tensors = super().infer(checkpoint), checkpoint.config, checkpoint.tensors
        levels = len(found["block_out_channels"])
        motion = "motion_modules.0.transformer_blocks.0.pos_embed.pe"
        found |= {
            "motion_max_seq_length": checkpoint.shape(f"down_blocks.0.{motion}")[1],
            "use_motion_mid_block": f"mid_block.{motion}" in tensors,
            "mid_block_layers": checkpoint.count("mid_block.attentions."),
        }
        for kind, modules in (("", "attentions"), ("temporal_", "motion_modules")):
            field = f"{kind}transformer_layers_per_block"
            if field not in config:
                found[field] = tuple(
                    checkpoint.count(f"down_blocks.{level}.{modules}.0.transformer_blocks.") or 1
                    for level in range(levels)
                )
            middle = checkpoint.count(f"mid_block.{modules}.0.transformer_blocks.")
            if f"{kind}transformer_layers_per_mid_block" not in config and middle:
                found[f"{kind}transformer_layers_per_mid_block"] = middle
        if "add_embedding.linear_1.weight" in tensors:
            found["addition_embed_type"] = "text_time"
            found["projection_class_embeddings_input_dim"] = checkpoint.shape("add_embedding.linear_1.weight")[1]
        return found

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return UNetMotion(UNetMotionConfig(**config))
