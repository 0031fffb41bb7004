"""Checkpoints of diffusers' PriorTransformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register, renamed
from fastdiff.models.checkpoints.openai_unet import fields_of, joined
from fastdiff.models.prior import Prior, PriorConfig

# Ours to theirs; q, k and v are derived.
_RULES = (
    (r"time_embedding\.0\.", "time_embedding.linear_1."),
    (r"time_embedding\.2\.", "time_embedding.linear_2."),
    (r"norm_condition\.", "embedding_proj_norm."),
    (r"condition_proj\.", "embedding_proj."),
    (r"text_proj\.", "encoder_hidden_states_proj."),
    (r"query$", "prd_embedding"),
    (r"positions$", "positional_embedding"),
    (r"proj_out\.", "proj_to_clip_embeddings."),
    (r"mean$", "clip_mean"),
    (r"std$", "clip_std"),
    (r"blocks\.(\d+)\.norm1\.", r"transformer_blocks.\1.norm1."),
    (r"blocks\.(\d+)\.norm2\.", r"transformer_blocks.\1.norm3."),
    (r"blocks\.(\d+)\.proj\.", r"transformer_blocks.\1.attn1.to_out.0."),
    (r"blocks\.(\d+)\.mlp\.0\.", r"transformer_blocks.\1.ff.net.0.proj."),
    (r"blocks\.(\d+)\.mlp\.2\.", r"transformer_blocks.\1.ff.net.2."),
    (r"blocks\.(\d+)\.qkv\.", r"transformer_blocks.\1.attn1.qkv."),
)


@register
class DiffusersPriorLayout(Layout):
    """The heads are in no shape. Of the positions the weights tell the sum of num_embeddings and
    additional_embeddings."""

    name = "diffusers"
    class_name = about = "PriorTransformer"
    fields: ClassVar = {
        field: default
        for field, default in fields_of(PriorConfig).items()
        if field not in ("norm_out", "statistics")  # not diffusers'
    }
    markers = (
        "positional_embedding",
        "embedding_proj.weight",
        "proj_to_clip_embeddings.weight",
        "clip_mean",
        "transformer_blocks.0.attn1.to_q.weight",
    )

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        shape, config, has = checkpoint.shape, checkpoint.config, checkpoint.tensors.__contains__
        width, channels = shape("proj_in.weight")
        found: dict[str, Any] = {
            "num_layers": checkpoint.count("transformer_blocks."),
            "embedding_dim": channels,
            "norm_in_type": "layer" if has("norm_in.weight") else None,
            "embedding_proj_norm_type": "layer" if has("embedding_proj_norm.weight") else None,
            "encoder_hid_proj_type": "linear" if has("encoder_hidden_states_proj.weight") else None,
            "added_emb_type": "prd" if has("prd_embedding") else None,
        }
        for field, channels_of, default in (
            ("time_embed_dim", shape("time_embedding.linear_1.weight")[0], width),
            ("embedding_proj_dim", shape("embedding_proj.weight")[1], channels),
            ("clip_embed_dim", shape("proj_to_clip_embeddings.weight")[0], channels),
        ):
            if channels_of != default or config.get(field) is not None:
                found[field] = channels_of
        positions = shape("positional_embedding")[1]
        extra = config.get("additional_embeddings", self.fields["additional_embeddings"])
        found["num_embeddings"] = positions - extra
        if "num_attention_heads" in config:
            found["attention_head_dim"] = width // config["num_attention_heads"]
        else:  # the published models have heads of 64 channels
            found["num_attention_heads"] = width // config.get("attention_head_dim", 64)
        return found

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return Prior(PriorConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        key = renamed(name, _RULES)
        if ".attn1.qkv." in key:
            return Derived(tuple(key.replace("qkv", f"to_{part}") for part in "qkv"), joined)
        return key
