"""Checkpoints of the U-Nets of CompVis/latent-diffusion and of Stable Diffusion 1, 2 and XL: a file of its own, or
part="unet" of a whole one, whose part="vae" is the autoencoder; a ControlNet's has part="controlnet" first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from fastdiff.errors import WeightsError
from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register
from fastdiff.models.checkpoints.openai_unet import fields_of, infer_unet, levels_of, original_unet
from fastdiff.models.ldm import LDMConfig, LDMUNet

PARTS = {"controlnet": "control_model.", "unet": "model.diffusion_model.", "vae": "first_stage_model."}
# Of published models, (model_channels, context_dim) and what is in no shape.
_PUBLISHED: dict[tuple[Any, Any], dict[str, int]] = {
    (320, 768): {"num_heads": 8},  # Stable Diffusion 1
    (320, 1024): {"num_head_channels": 64},  # Stable Diffusion 2
    (320, 2048): {"num_head_channels": 64},  # Stable Diffusion XL
    (384, 1280): {"num_head_channels": 64},  # its refiner
    (320, 1280): {"num_heads": 8},  # LDM, text to image
    (192, 512): {"num_heads": 1},  # LDM, ImageNet
}


@register
class LDMUNetLayout(Layout):
    """The class `UNetModel` of openaimodel.py, with and without spatial transformers."""

    name = "latent-diffusion"
    about = "the U-Net of LDM and Stable Diffusion 1, 2, XL"
    fields: ClassVar = fields_of(LDMConfig)
    parts: ClassVar = PARTS
    markers = (
        "time_embed.0.weight",
        "input_blocks.0.0.weight",
        "input_blocks.1.0.in_layers.0.weight",
        "output_blocks.0.0.in_layers.0.weight",
        "out.2.weight",
    )

    def detect(self, checkpoint: Checkpoint) -> bool:
        # without a transformer, and alone in its file, it has the names of guided-diffusion's
        own = any(".transformer_blocks." in key or key.startswith("id_predictor.") for key in checkpoint.tensors)
        return self.fits(checkpoint) and (own or bool(checkpoint.prefix))

    def fits(self, checkpoint: Checkpoint) -> bool:
        return super().detect(checkpoint) and "token_embedding.weight" not in checkpoint.tensors

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        found = {**infer_unet(checkpoint), **_infer_labels(checkpoint), **infer_transformers(checkpoint)}
        if "id_predictor.1.weight" in checkpoint.tensors:
            found["n_embed"] = checkpoint.shape("id_predictor.1.weight")[0]
        return {**found, **infer_heads(checkpoint, found)}

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return LDMUNet(LDMConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        if name.startswith("norm_codes."):
            return name.replace("norm_codes", "id_predictor.0")
        if name.startswith("conv_codes."):
            return name.replace("conv_codes", "id_predictor.1")
        if name.startswith("class_embedding.") and config["num_classes"] in ("sequential", "timestep"):
            index = 0 if config["num_classes"] == "sequential" else 1
            return name.replace("class_embedding", f"label_emb.{index}")
        return original_unet(name, LDMConfig(**config).heads, heads_first=not config["use_new_attention_order"])


def infer_heads(checkpoint: Checkpoint, found: Mapping[str, Any]) -> dict[str, Any]:
    """The number of heads of a published model, unless config tells it. Raises WeightsError for others.

    found: model_channels and context_dim.
    """
    if {"num_heads", "num_head_channels"} & checkpoint.config.keys():
        return {}
    context = found.get("context_dim")
    context = context[0] if isinstance(context, (list, tuple)) else context
    heads = _PUBLISHED.get((found["model_channels"], context))
    if heads is None:
        raise WeightsError(
            f"the weights of {checkpoint.name} do not tell the number of heads; config must give num_heads or "
            "num_head_channels"
        )
    return dict(heads)


def _infer_labels(checkpoint: Checkpoint) -> dict[str, Any]:
    keys = checkpoint.tensors.keys()
    if "label_emb.0.0.weight" in keys:
        return {"num_classes": "sequential", "adm_in_channels": checkpoint.shape("label_emb.0.0.weight")[1]}
    if "label_emb.1.0.weight" in keys:
        return {"num_classes": "timestep"}
    if "label_emb.bias" in keys:
        return {"num_classes": "continuous"}
    return {"num_classes": checkpoint.shape("label_emb.weight")[0] if "label_emb.weight" in keys else None}


def infer_transformers(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields on spatial transformers; those of levels without one are as given."""
    given = checkpoint.config
    depths: dict[str, int] = {}
    for key in checkpoint.tensors:
        where = re.match(r"(.*\.1\.)transformer_blocks\.(\d+)\.norm1\.weight", key)
        if where:
            depths[where[1]] = max(depths.get(where[1], 0), int(where[2]) + 1)
    if not depths:
        return {"use_spatial_transformer": False}
    some = f"{next(iter(depths))}transformer_blocks.0.attn"
    context = checkpoint.shape(f"{some}2.to_k.weight")[1]
    dims = given.get("context_dim")
    same = isinstance(dims, (list, tuple)) and set(dims) == {context}
    found = {"use_spatial_transformer": True, "context_dim": dims if same else context}
    if "use_linear_in_transformer" in given:
        found["use_linear_in_transformer"] = checkpoint.tensors[f"{next(iter(depths))}proj_in.weight"].ndim == 2
    levels = {f"{prefix}1.": level for prefix, level in levels_of(checkpoint).items()}
    if "disable_middle_transformer" not in given:
        found["disable_middle_transformer"] = "middle_block.1." not in depths
    if "num_attention_blocks" not in given:
        found |= _attention_blocks(checkpoint, levels, depths)
    if "transformer_depth" not in given:
        found["transformer_depth"] = _depths(levels, depths)
    if "disable_self_attentions" not in given and not same:
        narrow = {
            prefix
            for prefix in depths
            if checkpoint.shape(f"{prefix}transformer_blocks.0.attn1.to_k.weight")[1]
            != checkpoint.shape(f"{prefix}transformer_blocks.0.norm1.weight")[0]
        }
        if narrow:
            found |= _disabled(levels, narrow)
    return found


def _depths(levels: Mapping[str, int], depths: Mapping[str, int]) -> int | tuple[int, ...]:
    per_level = [1] * (levels["middle_block.1."] + 1)
    per_level[-1] = depths.get("middle_block.1.", 1)
    for prefix, level in levels.items():
        per_level[level] = depths.get(prefix, per_level[level])
    used = {depths[prefix] for prefix in levels if prefix in depths}
    return used.pop() if len(used) == 1 else tuple(per_level)


def _disabled(levels: Mapping[str, int], narrow: set[str]) -> dict[str, Any]:
    per_level = [False] * (levels["middle_block.1."] + 1)
    for prefix in narrow & levels.keys() - {"middle_block.1."}:
        per_level[levels[prefix]] = True
    return {"disable_self_attentions": tuple(per_level), "disable_middle_self_attn": "middle_block.1." in narrow}


def _attention_blocks(checkpoint: Checkpoint, levels: Mapping[str, int], depths: Mapping[str, int]) -> dict[str, Any]:
    """The field of this name, where some level has transformers after its first residual blocks alone."""
    down = {prefix: level for prefix, level in levels.items() if prefix != "middle_block.1."}
    blocks, attends = Counter(down.values()), Counter(down[prefix] for prefix in down.keys() & depths.keys())
    up = sum(prefix.startswith("output_blocks.") for prefix in depths)
    if any(prefix.startswith("output_blocks.") for prefix in checkpoint.tensors):
        everywhere = up == sum(blocks[level] + 1 for level in attends)  # after every residual block
    else:  # half a network
        everywhere = all(attends[level] == blocks[level] for level in attends)
    if everywhere:
        return {}
    return {"num_attention_blocks": tuple(attends[level] or count for level, count in sorted(blocks.items()))}
