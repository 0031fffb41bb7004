"""Checkpoints of facebookresearch/DiT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import isqrt
from typing import Any, ClassVar

from torch import nn

from fastdiff.models.checkpoints.layout import REQUIRED, Checkpoint, Derived, Layout, register, renamed
from fastdiff.models.dit import SIZES, DiT, DiTConfig

# Ours to theirs.
_RULES = (
    (r"positions$", "pos_embed"),
    (r"patches\.", "x_embedder.proj."),
    (r"conditioning\.0\.time\.", "t_embedder.mlp."),
    (r"conditioning\.0\.classes\.", "y_embedder.embedding_table."),
    (r"blocks\.(\d+)\.attention\.", r"blocks.\1.attn."),
    (r"blocks\.(\d+)\.mlp\.0\.", r"blocks.\1.mlp.fc1."),
    (r"blocks\.(\d+)\.mlp\.2\.", r"blocks.\1.mlp.fc2."),
    (r"blocks\.(\d+)\.modulation\.", r"blocks.\1.adaLN_modulation.1."),
    (r"final\.linear\.", "final_layer.linear."),
    (r"final\.modulation\.", "final_layer.adaLN_modulation.1."),
)
_DEFAULTS = {field.name: field.default for field in fields(DiTConfig)[:10]}  # the original constructor's


@register
class DiTLayout(Layout):
    """The class `DiT` of models.py: adaLN-Zero blocks."""

    name = "dit"
    about = "DiT of facebookresearch/DiT"
    fields: ClassVar = {**_DEFAULTS, "num_heads": REQUIRED}
    markers = (
        "pos_embed",
        "x_embedder.proj.weight",
        "y_embedder.embedding_table.weight",
        "blocks.0.mlp.fc1.weight",
        "final_layer.linear.weight",
    )

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        width, channels, patch, _ = checkpoint.shape("x_embedder.proj.weight")
        tokens = checkpoint.shape("pos_embed")[1]
        depth, config = checkpoint.count("blocks."), checkpoint.config
        rows = checkpoint.shape("y_embedder.embedding_table.weight")[0]
        dropout = config.get("class_dropout_prob", _DEFAULTS["class_dropout_prob"])
        found = {
            "input_size": isqrt(tokens) * patch,
            "patch_size": patch,
            "in_channels": channels,
            "hidden_size": width,
            "depth": depth,
            "num_classes": rows - (dropout > 0),
            "learn_sigma": checkpoint.shape("final_layer.linear.weight")[0] == 2 * channels * patch**2,
        }
        inner = checkpoint.shape("blocks.0.mlp.fc1.weight")[0]
        if int(width * config.get("mlp_ratio", 0)) != inner:  # else it is as given: rounding loses what it was
            found["mlp_ratio"] = inner / width
        published = {(size[0], size[1]): size[2] for size in SIZES.values()}
        if "num_heads" not in config and (depth, width) in published:
            found["num_heads"] = published[depth, width]  # the weights' shapes do not tell
        return found

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return DiT(DiTConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        return renamed(name, _RULES)
