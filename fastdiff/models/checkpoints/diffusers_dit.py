"""Checkpoints of diffusers' DiTTransformer2DModel."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, ClassVar

import torch
from torch import nn

from fastdiff.errors import expect, unknown
from fastdiff.models.checkpoints.layout import REQUIRED, Checkpoint, Derived, Layout, register, renamed
from fastdiff.models.dit import DiT, DiTConfig, sincos_positions

# Ours to theirs; q, k and v, and the positions, are derived.
_RULES = (
    (r"patches\.", "pos_embed.proj."),
    (r"conditioning\.(\d+)\.time\.0\.", r"transformer_blocks.\1.norm1.emb.timestep_embedder.linear_1."),
    (r"conditioning\.(\d+)\.time\.2\.", r"transformer_blocks.\1.norm1.emb.timestep_embedder.linear_2."),
    (r"conditioning\.(\d+)\.classes\.", r"transformer_blocks.\1.norm1.emb.class_embedder.embedding_table."),
    (r"blocks\.(\d+)\.modulation\.", r"transformer_blocks.\1.norm1.linear."),
    (r"blocks\.(\d+)\.attention\.proj\.", r"transformer_blocks.\1.attn1.to_out.0."),
    (r"blocks\.(\d+)\.attention\.", r"transformer_blocks.\1.attn1."),
    (r"blocks\.(\d+)\.norm\.", r"transformer_blocks.\1.norm3."),
    (r"blocks\.(\d+)\.mlp\.0\.", r"transformer_blocks.\1.ff.net.0.proj."),
    (r"blocks\.(\d+)\.mlp\.2\.", r"transformer_blocks.\1.ff.net.2."),
    (r"final\.modulation\.", "proj_out_1."),
    (r"final\.linear\.", "proj_out_2."),
)
_EMBEDDERS = tuple(
    f"norm1.emb.{name}"
    for name in (
        *(f"timestep_embedder.linear_{number}.{kind}" for number, kind in product((1, 2), ("weight", "bias"))),
        "class_embedder.embedding_table.weight",
    )
)
_GELU = {"gelu-approximate": "tanh", "gelu": "none"}  # activation_fn to torch's approximation


@register
class DiffusersDiTLayout(Layout):
    """Each block has embeddings of time and class of its own; in converted checkpoints all are the same, and are then
    computed once."""

    name = "diffusers"
    class_name = about = "DiTTransformer2DModel"
    fields: ClassVar = {
        "num_attention_heads": REQUIRED,
        "attention_head_dim": REQUIRED,
        "in_channels": 4,
        "out_channels": None,
        "num_layers": 28,
        "dropout": 0.0,
        "norm_num_groups": 32,
        "attention_bias": True,
        "sample_size": REQUIRED,
        "patch_size": 2,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "upcast_attention": False,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-5,
        "shared_embedders": False,  # not diffusers': read from the weights
    }
    markers = (
        "pos_embed.proj.weight",
        "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight",
        "transformer_blocks.0.norm1.linear.weight",
        "proj_out_2.weight",
    )

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        width, channels, patch, _ = checkpoint.shape("pos_embed.proj.weight")
        tables = checkpoint.shape("transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight")
        out_channels = checkpoint.shape("proj_out_2.weight")[0] // patch**2
        found = {
            "in_channels": channels,
            "num_layers": checkpoint.count("transformer_blocks."),
            "attention_bias": "transformer_blocks.0.attn1.to_q.bias" in checkpoint.tensors,
            "patch_size": patch,
            "num_embeds_ada_norm": tables[0] - 1,
            "norm_elementwise_affine": "transformer_blocks.0.norm3.weight" in checkpoint.tensors,
            "shared_embedders": _are_shared(checkpoint),
        }
        if checkpoint.config.get("out_channels") is not None or out_channels != channels:
            found["out_channels"] = out_channels
        heads = checkpoint.config.get("num_attention_heads")
        if heads:
            found["attention_head_dim"] = width // heads
        return found

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        expect(
            config["norm_type"] == "ada_norm_zero", f"norm_type must be 'ada_norm_zero', got {config['norm_type']!r}"
        )
        if config["activation_fn"] not in _GELU:
            raise unknown("activation_fn", config["activation_fn"], _GELU)
        return DiT(
            DiTConfig(
                input_size=config["sample_size"],
                patch_size=config["patch_size"],
                in_channels=config["in_channels"],
                hidden_size=config["num_attention_heads"] * config["attention_head_dim"],
                depth=config["num_layers"],
                num_heads=config["num_attention_heads"],
                num_classes=config["num_embeds_ada_norm"],
                learn_sigma=config["out_channels"] == 2 * config["in_channels"],
                out_channels=config["out_channels"] or config["in_channels"],
                shared_embedders=config["shared_embedders"],
                time_shift=1.0,
                mlp_eps=config["norm_eps"],
                mlp_norm_affine=config["norm_elementwise_affine"],
                qkv_bias=config["attention_bias"],
                gelu=_GELU[config["activation_fn"]],
            )
        )

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        if name == "positions":
            width = config["num_attention_heads"] * config["attention_head_dim"]
            side = config["sample_size"] // config["patch_size"]
            return Derived((), lambda: sincos_positions(width, side)[None])
        theirs = renamed(name, _RULES)
        if ".attn1.qkv." in theirs:
            return Derived(
                tuple(theirs.replace("qkv", f"to_{part}") for part in "qkv"), lambda *parts: torch.cat(parts)
            )
        return theirs

    def unused(self, key: str, config: Mapping[str, Any]) -> bool:
        """The embeddings of the later blocks, where they are the first one's."""
        block, _, rest = key.removeprefix("transformer_blocks.").partition(".")
        return config["shared_embedders"] and block.isdigit() and rest in _EMBEDDERS


def _are_shared(checkpoint: Checkpoint) -> bool:
    """Whether the embeddings of all blocks are equal, to the bit."""
    for name in _EMBEDDERS:
        first, *others = (f"transformer_blocks.{b}.{name}" for b in range(checkpoint.count("transformer_blocks.")))
        if any(key not in checkpoint.tensors for key in (first, *others)):
            return False
        mine = checkpoint.again(first)
        if not all(torch.equal(mine, checkpoint.again(key)) for key in others):
            return False
    return True
