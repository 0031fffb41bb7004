"""Checkpoints of openai/glide-text2im."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from torch import nn

from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register, renamed
from fastdiff.models.checkpoints.openai_unet import fields_of, heads_last, infer_unet, original_unet
from fastdiff.models.glide import GLIDE, GLIDEConfig

# Ours to theirs.
_TEXT = (
    (r"text\.tokens\.", "token_embedding."),
    (r"text\.positions$", "positional_embedding"),
    (r"text\.padding$", "padding_embedding"),
    (r"text\.norm\.", "final_ln."),
    (r"text\.proj\.", "transformer_proj."),
    (r"text\.blocks\.(\d+)\.norm1\.", r"transformer.resblocks.\1.ln_1."),
    (r"text\.blocks\.(\d+)\.norm2\.", r"transformer.resblocks.\1.ln_2."),
    (r"text\.blocks\.(\d+)\.qkv\.", r"transformer.resblocks.\1.attn.c_qkv."),
    (r"text\.blocks\.(\d+)\.proj\.", r"transformer.resblocks.\1.attn.c_proj."),
    (r"text\.blocks\.(\d+)\.mlp\.0\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"text\.blocks\.(\d+)\.mlp\.2\.", r"transformer.resblocks.\1.mlp.c_proj."),
)


@register
class GLIDELayout(Layout):
    """The class `Text2ImUNet`, and those that see a small picture (super_res) or a part of the picture (inpaint): found
    from in_channels, 3 if not given."""

    name = "glide"
    about = "GLIDE's U-Net with its text transformer"
    fields: ClassVar = fields_of(GLIDEConfig)
    markers = (
        "time_embed.0.weight",
        "input_blocks.0.0.weight",
        "transformer_proj.weight",
        "token_embedding.weight",
        "transformer.resblocks.0.attn.c_qkv.weight",
    )

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        found = infer_unet(checkpoint)
        width, channels = found["in_channels"], checkpoint.config.get("in_channels", 3)
        extra = {channels: (False, False), 2 * channels: (True, False), 2 * channels + 1: (False, True),
                 3 * channels + 1: (True, True)}  # fmt: skip
        if width in extra:
            found["in_channels"] = channels
            found["super_res"], found["inpaint"] = extra[width]
        if "token_embedding.weight" not in checkpoint.tensors:
            return {**found, "xf_width": 0}
        vocabulary, xf_width = checkpoint.shape("token_embedding.weight")
        published = {512: 8}  # channels of the transformer: heads
        if xf_width in published and "xf_heads" not in checkpoint.config:
            found["xf_heads"] = published[xf_width]
        if not {"num_heads", "num_head_channels"} & checkpoint.config.keys():
            found["num_head_channels"] = 64
        return {
            **found,
            "n_vocab": vocabulary,
            "xf_width": xf_width,
            "text_ctx": checkpoint.shape("positional_embedding")[0],
            "xf_layers": checkpoint.count("transformer.resblocks."),
            "xf_final_ln": "final_ln.weight" in checkpoint.tensors,
            "xf_padding": "padding_embedding" in checkpoint.tensors,
        }

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return GLIDE(GLIDEConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        if not name.startswith("text."):
            return original_unet(name, GLIDEConfig(**config).heads, heads_first=True)
        key = renamed(name, _TEXT)
        if ".c_qkv." not in key:
            return key
        return Derived((key,), partial(heads_last, heads=lambda channels: config["xf_heads"]))

    def unused(self, key: str, config: Mapping[str, Any]) -> bool:
        # heads for training the transformer alone; classes, which the original takes and does not use
        return key.startswith("unemb.") or (config["num_classes"] is not None and key.startswith("label_emb."))
