"""Checkpoints of diffusers' UNet2DModel and UNet2DConditionModel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from fastdiff.errors import expect
from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register, renamed
from fastdiff.models.checkpoints.openai_unet import fields_of, flat, joined
from fastdiff.models.unet_2d import UNet2D, UNet2DModelConfig, per_level
from fastdiff.models.unet_2d_condition import UNet2DCondition, UNet2DConditionConfig

# Ours to theirs.
_OUTER = (
    (r"times\.", "time_proj."),
    (r"cond_proj\.", "time_embedding.cond_proj."),
    (r"(time_embedding|class_embedding|add_embedding)\.0\.", r"\1.linear_1."),
    (r"(time_embedding|class_embedding|add_embedding)\.2\.", r"\1.linear_2."),
    (r"context_proj\.", "encoder_hid_proj."),
    (r"norm_out\.", "conv_norm_out."),
)
_RESIDUAL = ((r"(scale_shift|shift)\.", "time_emb_proj."), (r"skip\.", "conv_shortcut."))
_TRANSFORMER = (
    (r"blocks\.(\d+)\.(attn\d)\.to_out\.", r"transformer_blocks.\1.\2.to_out.0."),
    (r"blocks\.(\d+)\.ff\.proj_in\.", r"transformer_blocks.\1.ff.net.0.proj."),
    (r"blocks\.(\d+)\.ff\.proj_out\.", r"transformer_blocks.\1.ff.net.2."),
    (r"blocks\.", "transformer_blocks."),
)
# Of self-attention: q, k, v and the output's projection, and the names before diffusers 0.18.
_NAMES = ("to_q", "to_k", "to_v", "to_out.0")
_OLD_NAMES = ("query", "key", "value", "proj_attn")


# Keys and values of a context beside self-attention's.
_CONTEXT_NAMES = ("add_k_proj", "add_v_proj")


def original_attention(block: str, inner: str, *, old: bool, only_context: bool = False) -> str | Derived:
    """Where a tensor of an `AttentionBlock` comes from. only_context: whether it has queries of its own alone."""
    part, kind = inner.split(".")
    if part == "norm":
        return f"{block}.group_norm.{kind}"
    *qkv, out = _OLD_NAMES if old else _NAMES
    if part == "kv_context":
        return Derived(tuple(f"{block}.{name}.{kind}" for name in _CONTEXT_NAMES), joined)
    if part == "qkv":
        qkv = qkv[:1] if only_context else qkv
        return Derived(tuple(f"{block}.{name}.{kind}" for name in qkv), joined)
    return Derived((f"{block}.{out}.{kind}",), flat)


def has_old_names(checkpoint: Checkpoint) -> bool:
    """Whether self-attention has the names that diffusers gave it at first."""
    return any(key.endswith(".proj_attn.weight") for key in checkpoint.tensors)


class UNetFamily(Layout):
    """What the two classes share."""

    name = "diffusers"

    def detect(self, checkpoint: Checkpoint) -> bool:
        return super().detect(checkpoint) and ("_class_name" in checkpoint.config or not is_video(checkpoint))

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        shape, config = checkpoint.shape, checkpoint.config
        levels = checkpoint.count("down_blocks.")
        layers = tuple(checkpoint.count(f"down_blocks.{level}.resnets.") for level in range(levels))
        found: dict[str, Any] = {
            "in_channels": shape("conv_in.weight")[1],
            "block_out_channels": tuple(
                shape(f"down_blocks.{level}.resnets.0.conv1.weight")[0] for level in range(levels)
            ),
            "old_attention_names": has_old_names(checkpoint),
        }
        if "out_channels" in self.fields:
            found["out_channels"] = shape("conv_out.weight")[0]
        given = config.get("layers_per_block")
        same = given is not None and layers == per_level(given, levels if isinstance(given, int) else len(given))
        found["layers_per_block"] = given if same else layers[0] if len(set(layers)) == 1 else layers
        first = "down_blocks.0.resnets.0."
        out_channels = shape(f"{first}conv1.weight")[0]
        adaptive = shape(f"{first}time_emb_proj.weight")[0] == 2 * out_channels
        found["resnet_time_scale_shift"] = "scale_shift" if adaptive else "default"
        if config.get("num_class_embeds") is not None and config.get("class_embed_type") is None:
            found["num_class_embeds"] = shape("class_embedding.weight")[0]
        if "down_block_types" not in config:
            found |= self.block_types(checkpoint, levels)
        return found

    def block_types(self, checkpoint: Checkpoint, levels: int) -> dict[str, Any]:
        """The types of the blocks, of a state dict that comes without a config."""

        def kind(prefix: str, way: str) -> str:
            keys = [key for key in checkpoint.tensors if key.startswith(prefix)]
            if any(".transformer_blocks." in key for key in keys):
                return f"CrossAttn{way}Block2D"
            if any(".add_k_proj." in key for key in keys):
                return f"SimpleCrossAttn{way}Block2D"
            if any(".attentions." in key for key in keys):
                return f"Attn{way}Block2D"
            sampler = "downsamplers" if way == "Down" else "upsamplers"
            by_block = f"{prefix}{sampler}.0.norm1.weight" in checkpoint.tensors
            return f"Resnet{way}sampleBlock2D" if by_block else f"{way}Block2D"

        types = {
            f"{way.lower()}_block_types": tuple(kind(f"{way.lower()}_blocks.{level}.", way) for level in range(levels))
            for way in ("Down", "Up")
        }
        return {field: value for field, value in types.items() if field in self.fields}

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        where = re.match(r"(down|middle|up)\.(?:(\d+)\.)?(\d+)\.(.*)", name)
        if where is None:
            return renamed(name, _OUTER)
        place, stage, layer, inner = where.groups()
        kind = inner.split(".")[0]
        if place == "middle":
            index, block, levels = 0 if layer == "0" else 1, "mid_block", 0
        else:
            levels = len(config["block_out_channels"])
            layers = per_level(config["layers_per_block"], levels)
            counts = layers if place == "down" else [count + 1 for count in layers[::-1]]
            at, index = _position(counts, int(stage), halvings=place == "down")
            block = f"{place}_blocks.{at}"
            sampler = "downsamplers" if place == "down" else "upsamplers"
            if kind == "conv":
                return f"{block}.{sampler}.0.{inner}"
            residual = kind in ("norm1", "conv1", "scale_shift", "shift", "norm2", "conv2", "skip")
            if residual and (layer != "0" or (place == "down" and index == counts[at])):
                return f"{block}.{sampler}.0.{renamed(inner, _RESIDUAL)}"
        attends = kind in ("norm", "qkv", "kv_context", "proj", "proj_in", "proj_out", "blocks")
        if not attends:
            return f"{block}.resnets.{index}.{renamed(inner, _RESIDUAL)}"
        block = f"{block}.attentions.{0 if place == 'middle' else index}"
        if self.is_transformer(place, at if place != "middle" else 0, config):
            key = f"{block}.{renamed(inner, _TRANSFORMER)}"
            return Derived((key,), flat) if inner in ("proj_in.weight", "proj_out.weight") else key
        only = self.only_context(place, at if place != "middle" else 0, config)
        return original_attention(block, inner, old=config["old_attention_names"], only_context=only)

    def only_context(self, place: str, block: int, config: Mapping[str, Any]) -> bool:
        """Whether the attention of a block sees the context alone."""
        return False

    def is_transformer(self, place: str, block: int, config: Mapping[str, Any]) -> bool:
        """Whether the attention of a block is a transformer."""
        if place == "middle":
            return config["mid_block_type"] == "UNetMidBlock2DCrossAttn"
        return config[f"{place}_block_types"][block].startswith("CrossAttn")


def is_video(checkpoint: Checkpoint) -> bool:
    """Whether there are layers over frames: of UNet3DConditionModel or UNetMotionModel."""
    return any(".temp_convs." in key or ".motion_modules." in key for key in checkpoint.tensors)


def _position(counts: Any, stage: int, *, halvings: bool) -> tuple[int, int]:
    """The block and the number in it of a stage; on the way down a halving comes after each block's residual ones."""
    for block, count in enumerate(counts):
        size = count + halvings
        if stage < size:
            return block, stage
        stage -= size
    raise AssertionError("more stages than the config has")


@register
class UNet2DLayout(UNetFamily):
    """UNet2DModel: its self-attention has heads of attention_head_dim channels."""

    class_name = about = "UNet2DModel"
    fields: ClassVar = {
        **fields_of(UNet2DModelConfig),
        "in_channels": 3,
        "out_channels": 3,
        "mid_block_type": "UNetMidBlock2D",
        "old_attention_names": False,  # not diffusers': read from the weights
    }
    markers = ("time_embedding.linear_1.weight", "conv_in.weight", "conv_norm_out.weight",
               "down_blocks.0.resnets.0.time_emb_proj.weight")  # fmt: skip

    def detect(self, checkpoint: Checkpoint) -> bool:
        if "_class_name" in checkpoint.config:
            return super().detect(checkpoint)
        return super().detect(checkpoint) and not (_has_transformers(checkpoint) or _is_joint(checkpoint))

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return UNet2D(UNet2DModelConfig(**without_ours(config)))


@register
class UNet2DConditionLayout(UNetFamily):
    """UNet2DConditionModel: transformers with attention_head_dim heads."""

    class_name = about = "UNet2DConditionModel"
    fields: ClassVar = {
        **fields_of(UNet2DConditionConfig),
        "in_channels": 4,
        "out_channels": 4,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "block_out_channels": (320, 640, 1280, 1280),
        "old_attention_names": False,  # not diffusers': read from the weights
    }
    markers = UNet2DLayout.markers

    def detect(self, checkpoint: Checkpoint) -> bool:
        if "_class_name" in checkpoint.config:
            return super().detect(checkpoint)
        return super().detect(checkpoint) and (_has_transformers(checkpoint) or _is_joint(checkpoint))

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        found, config = super().infer(checkpoint), checkpoint.config
        levels = len(found["block_out_channels"])
        first = "attentions.0.transformer_blocks"
        depths = [checkpoint.count(f"down_blocks.{level}.{first}.") for level in range(levels)]
        contexts = {
            level: checkpoint.shape(f"down_blocks.{level}.{first}.0.attn2.to_k.weight")[1]
            for level, depth in enumerate(depths)
            if depth
        }
        joint = [f"down_blocks.{level}.attentions.0." for level in range(levels)]
        contexts |= {
            level: checkpoint.shape(f"{prefix}add_k_proj.weight")[1]
            for level, prefix in enumerate(joint)
            if f"{prefix}add_k_proj.weight" in checkpoint.tensors
        }
        if "only_cross_attention" not in config and _is_joint(checkpoint):
            alone = tuple(
                level in contexts and not depths[level] and f"{joint[level]}to_k.weight" not in checkpoint.tensors
                for level in range(levels)
            )
            found["only_cross_attention"] = alone
        if contexts:
            same = len(set(contexts.values())) == 1
            per = tuple(contexts.get(level, 0) for level in range(levels))
            found["cross_attention_dim"] = next(iter(contexts.values())) if same else per
            given = config.get("cross_attention_dim")
            if given is not None and all(per_level(given, levels)[level] == n for level, n in contexts.items()):
                found["cross_attention_dim"] = given
        middle = checkpoint.count(f"mid_block.{first}.")
        if "mid_block_type" not in config:
            blocks = checkpoint.count("mid_block.resnets.")
            plain = "UNetMidBlock2D" if blocks else None
            if "mid_block.attentions.0.add_k_proj.weight" in checkpoint.tensors:
                plain = "UNetMidBlock2DSimpleCrossAttn"
                own = "mid_block.attentions.0.to_k.weight" in checkpoint.tensors
                if config.get("mid_block_only_cross_attention") is None:
                    found["mid_block_only_cross_attention"] = not own
            found["mid_block_type"] = "UNetMidBlock2DCrossAttn" if middle else plain
        if "transformer_layers_per_block" not in config:
            depths[-1] = depths[-1] or middle
            found["transformer_layers_per_block"] = tuple(depth or 1 for depth in depths)
        return found

    def only_context(self, place: str, block: int, config: Mapping[str, Any]) -> bool:
        only = config["only_cross_attention"]
        if place == "middle":
            given = config["mid_block_only_cross_attention"]
            return only is True if given is None else given
        per = per_level(only, len(config["block_out_channels"]))
        return per[block] if place == "down" else per[-1 - block]

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        expect(config["norm_num_groups"] is not None, "norm_num_groups must be a number, got None")
        return UNet2DCondition(UNet2DConditionConfig(**without_ours(config)))


def _has_transformers(checkpoint: Checkpoint) -> bool:
    return any(".transformer_blocks." in key for key in checkpoint.tensors)


def _is_joint(checkpoint: Checkpoint) -> bool:
    """Whether attention to the context and to the pixels is one, as in Karlo's decoder."""
    return any(".add_k_proj." in key for key in checkpoint.tensors)


def without_ours(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what is not diffusers'."""
    return {field: value for field, value in config.items() if field != "old_attention_names"}
