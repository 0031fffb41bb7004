"""Checkpoints of lucidrains/DALLE2-pytorch's prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register, renamed
from fastdiff.models.checkpoints.openai_unet import fields_of
from fastdiff.models.dalle2_prior import DALLE2Prior, DALLE2PriorConfig

# Ours to theirs.
_RULES = (
    (r"text_proj\.", "to_text_embeds.0."),
    (r"image_proj\.", "to_image_embeds.0."),
    (r"times\.", "to_time_embeds.0."),
    (r"time_mlp\.0\.", "to_time_embeds.0.1.net.0.0."),
    (r"time_mlp\.2\.", "to_time_embeds.0.1.net.1.0."),
    (r"time_mlp\.4\.", "to_time_embeds.0.1.net.2."),
    (r"query$", "learned_query"),
    (r"null_tokens$", "null_text_encodings"),
    (r"null_text$", "null_text_embeds"),
    (r"null_image$", "null_image_embed"),
    (r"norm_in\.gain$", "causal_transformer.init_norm.g"),
    (r"bias\.", "causal_transformer.rel_pos_bias.relative_attention_bias."),
    (r"norm_out\.gain$", "causal_transformer.norm.g"),
    (r"proj_out\.", "causal_transformer.project_out."),
)
_BLOCK = (
    (r"norm\.gain$", "0.norm.g"),
    (r"(null_kv|to_q|to_kv)", r"0.\1"),
    (r"frequencies$", "0.rotary_emb.freqs"),
    (r"to_out\.", "0.to_out.0."),
    (r"norm_attention\.gain$", "0.to_out.1.g"),
    (r"norm_ff\.gain$", "1.0.g"),
    (r"ff_in\.", "1.1."),
    (r"norm_hidden\.gain$", "1.3.g"),
    (r"ff_out\.", "1.5."),
)


@register
class DALLE2PriorLayout(Layout):
    """The class `DiffusionPriorNetwork`; also in the file of a whole `DiffusionPrior`, which calls it `net`."""

    name = "dalle2"
    about = "the prior of DALLE2-pytorch"
    fields: ClassVar = fields_of(DALLE2PriorConfig)
    parts: ClassVar = {"net": "net."}
    markers = (
        "learned_query",
        "null_text_encodings",
        "null_image_embed",
        "causal_transformer.rel_pos_bias.relative_attention_bias.weight",
        "causal_transformer.layers.0.0.null_kv",
    )

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        shape, has = checkpoint.shape, checkpoint.tensors.__contains__
        dim = shape("learned_query")[0]
        first = "causal_transformer.layers.0."
        inner, size = shape(f"{first}0.to_q.weight")[0], shape(f"{first}0.null_kv")[1]
        hidden = shape(f"{first}1.1.weight")[0] // 2
        steps = has("to_time_embeds.0.weight")
        times = shape("to_time_embeds.0.weight")[1] if steps else shape("to_time_embeds.0.1.net.2.weight")[0]
        images = shape("to_image_embeds.0.weight")[0] // dim if has("to_image_embeds.0.weight") else 1
        found: dict[str, Any] = {
            "dim": dim,
            "depth": checkpoint.count("causal_transformer.layers."),
            "num_timesteps": shape("to_time_embeds.0.weight")[0] if steps else None,
            "num_time_embeds": times // dim,
            "num_image_embeds": images,
            "num_text_embeds": shape("null_text_embeds")[1],
            "max_text_len": shape("null_text_encodings")[1],
            "dim_head": size,
            "heads": inner // size,
            "norm_in": has("causal_transformer.init_norm.g"),
            "norm_out": has("causal_transformer.norm.g"),
            "final_proj": has("causal_transformer.project_out.weight"),
            "normformer": has(f"{first}1.3.g"),
            "rotary_emb": has(f"{first}0.rotary_emb.freqs"),
        }
        if int(dim * checkpoint.config.get("ff_mult", 0)) != hidden:  # else it is as given
            found["ff_mult"] = hidden / dim
        return found

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return DALLE2Prior(DALLE2PriorConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        if not name.startswith("blocks."):
            return renamed(name, _RULES)
        _, index, inner = name.split(".", 2)
        return f"causal_transformer.layers.{index}.{renamed(inner, _BLOCK)}"
