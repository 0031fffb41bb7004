"""Checkpoints of baofff/U-ViT."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any, ClassVar

from torch import nn

from fastdiff.errors import expect
from fastdiff.models.checkpoints.layout import REQUIRED, Checkpoint, Derived, Layout, register, renamed
from fastdiff.models.checkpoints.openai_unet import fields_of
from fastdiff.models.uvit import UViT, UViTConfig

# Ours to theirs.
_OUTER = (
    (r"positions$", "pos_embed"),
    (r"patches\.", "patch_embed.proj."),
    (r"time_embedding\.", "time_embed."),
    (r"class_embedding\.", "label_emb."),
    (r"context_embedding\.", "context_embed."),
    (r"proj_out\.", "decoder_pred."),
    (r"conv_out\.", "final_layer."),
    (r"down\.", "in_blocks."),
    (r"middle\.", "mid_block."),
    (r"up\.", "out_blocks."),
)
_BLOCK = (
    (r"(.*)\.skip\.", r"\1.skip_linear."),
    (r"(.*)\.(qkv|proj)\.", r"\1.attn.\2."),
    (r"(.*)\.mlp\.0\.", r"\1.mlp.fc1."),
    (r"(.*)\.mlp\.2\.", r"\1.mlp.fc2."),
)
# Channels and heads of the published configurations.
_HEADS = {512: 8, 768: 12, 1024: 16, 1152: 16}


@register
class UViTLayout(Layout):
    """The class `UViT` of uvit.py, and that of uvit_t2i.py, which has a text: found from the keys."""

    name = "u-vit"
    about = "U-ViT, with classes, a text or neither"
    fields: ClassVar = {**fields_of(UViTConfig), "num_heads": REQUIRED, "use_checkpoint": False}
    markers = ("pos_embed", "patch_embed.proj.weight", "mid_block.attn.qkv.weight", "decoder_pred.weight")

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        shape, tensors, config = checkpoint.shape, checkpoint.tensors, checkpoint.config
        width, channels, patch, _ = shape("patch_embed.proj.weight")
        tokens = shape("pos_embed")[1]
        classes = shape("label_emb.weight")[0] if "label_emb.weight" in tensors else -1
        found: dict[str, Any] = {
            "patch_size": patch,
            "in_chans": channels,
            "embed_dim": width,
            "qkv_bias": "mid_block.attn.qkv.bias" in tensors,
            "mlp_time_embed": "time_embed.0.weight" in tensors,
            "conv": "final_layer.weight" in tensors,
        }
        if checkpoint.count("out_blocks.") > 0:
            found["skip"] = "out_blocks.0.skip_linear.weight" in tensors
        if checkpoint.count("in_blocks.") != config.get("depth", -1) // 2:  # else it may be odd
            found["depth"] = 2 * checkpoint.count("in_blocks.")
        if classes > 0 or config.get("num_classes", -1) > 0:
            found["num_classes"] = classes
        inner = shape("mid_block.mlp.fc1.weight")[0]
        if int(width * config.get("mlp_ratio", 0)) != inner:  # else it is as given: rounding loses what it was
            found["mlp_ratio"] = inner / width
        if "context_embed.weight" in tensors:
            found["clip_dim"] = shape("context_embed.weight")[1]
            if "img_size" in config:
                found["num_clip_token"] = tokens - 1 - (config["img_size"] // patch) ** 2
            else:
                text = config.get("num_clip_token", 77)
                side = isqrt(max(tokens - 1 - text, 0))
                expect(
                    side**2 == tokens - 1 - text,
                    f"{checkpoint.name} has {tokens} positions, which are not 1 + {text} and a square; config must "
                    "give num_clip_token",
                )
                found |= {"num_clip_token": text, "img_size": side * patch}
        else:
            found["img_size"] = isqrt(tokens - 1) * patch
        if "num_heads" not in config and width in _HEADS:
            found["num_heads"] = _HEADS[width]  # the weights' shapes do not tell
        return found

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return UViT(UViTConfig(**{field: value for field, value in config.items() if field != "use_checkpoint"}))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        theirs = renamed(name, _OUTER)
        return renamed(theirs, _BLOCK) if "_block" in theirs else theirs
