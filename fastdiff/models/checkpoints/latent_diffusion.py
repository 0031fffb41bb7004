"""Checkpoints of CompVis/latent-diffusion and of Stable Diffusion 1, 2 and XL: of a whole file, its U-Net
(part="unet") or its autoencoder (part="vae"); of a file with one of them, that one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastdiff.errors import WeightsError
from fastdiff.models.autoencoder import AutoencoderConfig, AutoencoderKL, AutoencoderVQ
from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register, renamed
from fastdiff.models.checkpoints.openai_unet import fields_of, flat, infer_unet, original_unet
from fastdiff.models.ddpm import DDPM, DDPMConfig
from fastdiff.models.ldm import LDMConfig, LDMUNet

PARTS = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
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
        found = {**infer_unet(checkpoint), **_infer_labels(checkpoint), **_infer_transformers(checkpoint)}
        if "id_predictor.1.weight" in checkpoint.tensors:
            found["n_embed"] = checkpoint.shape("id_predictor.1.weight")[0]
        if not {"num_heads", "num_head_channels"} & checkpoint.config.keys():
            context = found.get("context_dim")
            context = context[0] if isinstance(context, (list, tuple)) else context
            heads = _PUBLISHED.get((found["model_channels"], context))
            if heads is None:
                raise WeightsError(
                    f"the weights of {checkpoint.name} do not tell the number of heads; config must give num_heads or "
                    "num_head_channels"
                )
            found |= heads
        return found

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


def _infer_labels(checkpoint: Checkpoint) -> dict[str, Any]:
    keys = checkpoint.tensors.keys()
    if "label_emb.0.0.weight" in keys:
        return {"num_classes": "sequential", "adm_in_channels": checkpoint.shape("label_emb.0.0.weight")[1]}
    if "label_emb.1.0.weight" in keys:
        return {"num_classes": "timestep"}
    if "label_emb.bias" in keys:
        return {"num_classes": "continuous"}
    return {"num_classes": checkpoint.shape("label_emb.weight")[0] if "label_emb.weight" in keys else None}


def _infer_transformers(checkpoint: Checkpoint) -> dict[str, Any]:
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
    if "transformer_depth" not in given:
        found["transformer_depth"] = _depths(checkpoint, depths)
    if "disable_self_attentions" not in given and not same:
        narrow = {
            prefix
            for prefix in depths
            if checkpoint.shape(f"{prefix}transformer_blocks.0.attn1.to_k.weight")[1]
            != checkpoint.shape(f"{prefix}transformer_blocks.0.norm1.weight")[0]
        }
        if narrow:
            found |= _disabled(checkpoint, narrow)
    return found


def _level_of(checkpoint: Checkpoint) -> dict[str, int]:
    """The level of each stage on the way down, by its prefix, and of the middle."""
    levels, level = {}, 0
    stages = checkpoint.count("input_blocks.")
    for index in range(1, stages):
        prefix = f"input_blocks.{index}."
        if not any(key.startswith(f"{prefix}0.in_layers.") for key in checkpoint.tensors):
            level += 1  # a convolution that halves, or a mean
            continue
        levels[f"{prefix}1."] = level
    levels["middle_block.1."] = level
    return levels


def _depths(checkpoint: Checkpoint, depths: Mapping[str, int]) -> int | tuple[int, ...]:
    levels = _level_of(checkpoint)
    per_level = [1] * (levels["middle_block.1."] + 1)
    per_level[-1] = depths.get("middle_block.1.", 1)
    for prefix, level in levels.items():
        per_level[level] = depths.get(prefix, per_level[level])
    used = {depths[prefix] for prefix in levels if prefix in depths}
    return used.pop() if len(used) == 1 else tuple(per_level)


def _disabled(checkpoint: Checkpoint, narrow: set[str]) -> dict[str, Any]:
    levels = _level_of(checkpoint)
    per_level = [False] * (levels["middle_block.1."] + 1)
    for prefix in narrow & levels.keys() - {"middle_block.1."}:
        per_level[levels[prefix]] = True
    return {"disable_self_attentions": tuple(per_level), "disable_middle_self_attn": "middle_block.1." in narrow}


# ---- autoencoders, and DDPM's `Model`, whose names are of the same kind ---------------------------------------------


@register
class AutoencoderLayout(Layout):
    """The classes `AutoencoderKL` and `VQModel`. config: the fields of ddconfig, and embed_dim and n_embed."""

    name = "latent-diffusion"
    about = "the autoencoders of LDM and Stable Diffusion"
    fields: ClassVar = fields_of(AutoencoderConfig)
    parts: ClassVar = PARTS
    markers = ("encoder.conv_in.weight", "decoder.conv_in.weight", "encoder.down.0.block.0.norm1.weight")

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        encoder = checkpoint.below("encoder.")
        shape = checkpoint.shape
        latent = shape("decoder.conv_in.weight")[1]
        found = {
            **_infer_levels(encoder, checkpoint.config, self.fields["resolution"]),
            "out_ch": shape("decoder.conv_out.weight")[0],
            "z_channels": latent,
            "double_z": shape("encoder.conv_out.weight")[0] == 2 * latent,
            "embed_dim": shape("post_quant_conv.weight")[1],
        }
        if "quantize.embedding.weight" in checkpoint.tensors:
            found["n_embed"] = shape("quantize.embedding.weight")[0]
        return found

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        model = AutoencoderKL if config["n_embed"] is None else AutoencoderVQ
        return model(AutoencoderConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        return original_levels(name, len(config["ch_mult"]), config["num_res_blocks"], linear=_is_linear(config))

    def unused(self, key: str, config: Mapping[str, Any]) -> bool:
        return key.startswith(("loss.", "model_ema.")) or key == "colorize"


@register
class DDPMLayout(Layout):
    """The class `Model` of model.py, the network of DDPM, as in latent-diffusion, DDIM and pytorch_diffusion."""

    name = "latent-diffusion"
    about = "DDPM's U-Net"
    fields: ClassVar = fields_of(DDPMConfig)
    markers = ("conv_in.weight", "down.0.block.0.norm1.weight", "up.0.block.0.norm1.weight", "mid.block_1.norm1.weight")

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        size = checkpoint.config.get("resolution")
        if size is None:
            return {}  # which is required, and the comparison of keys follows
        return {
            **_infer_levels(checkpoint, checkpoint.config, size),
            "out_ch": checkpoint.shape("conv_out.weight")[0],
            "use_timestep": "temb.dense.0.weight" in checkpoint.tensors,
        }

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return DDPM(DDPMConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        if name.startswith("time_embedding."):
            return name.replace("time_embedding.0", "temb.dense.0").replace("time_embedding.2", "temb.dense.1")
        return original_levels(name, len(config["ch_mult"]), config["num_res_blocks"], linear=_is_linear(config))


_INNER = ((r"shift\.", "temb_proj."), (r"skip\.", "nin_shortcut."))


def original_levels(name: str, levels: int, blocks: int, *, linear: bool) -> str | Derived:
    """Where the tensor `name` comes from, in networks whose levels are modules with lists `block` and `attn`.

    linear: whether attention is the linear one.
    """
    where = re.match(r"((?:encoder\.|decoder\.)?)(down|middle|up)\.(?:(\d+)\.)?(\d+)\.(.*)", name)
    if where is None:
        return name
    prefix, place, stage, layer, inner = where.groups()
    attention = inner.split(".")[0] in ("norm", "qkv", "proj")
    if place == "middle":
        block = f"{prefix}mid.attn_1" if attention else f"{prefix}mid.block_{1 if layer == '0' else 2}"
    else:
        level, index = divmod(int(stage), blocks + 1)
        level = level if place == "down" else levels - 1 - level
        block = f"{prefix}{place}.{level}"
        if inner.startswith("conv."):
            return f"{block}.{'downsample' if place == 'down' else 'upsample'}.{inner}"
        block = f"{block}.{'attn' if attention else 'block'}.{index}"
    if not attention:
        return f"{block}.{renamed(inner, _INNER)}"
    kind = inner.split(".")[1]
    if linear:
        return f"{block}.{'to_qkv' if inner.startswith('qkv') else 'to_out'}.{kind}"
    if inner.startswith("qkv."):
        return Derived(tuple(f"{block}.{part}.{kind}" for part in "qkv"), joined)
    return Derived((f"{block}.proj_out.{kind}",), flat) if inner.startswith("proj.") else f"{block}.{inner}"


def joined(*weights: Tensor) -> Tensor:
    """Projections of the same input as one."""
    return torch.cat([flat(weight) for weight in weights])


def _infer_levels(checkpoint: Checkpoint, given: Mapping[str, Any], resolution: int) -> dict[str, Any]:
    """What the way down tells of an encoder or of DDPM's network."""
    ch, in_channels, *_ = checkpoint.shape("conv_in.weight")
    levels = checkpoint.count("down.")
    blocks = checkpoint.count("down.0.block.")
    widths = [checkpoint.shape(f"down.{level}.block.0.conv1.weight")[0] for level in range(levels)]
    size = given.get("resolution", resolution)
    keys = checkpoint.tensors.keys()
    kind = "linear" if "mid.attn_1.to_qkv.weight" in keys else "vanilla" if "mid.attn_1.q.weight" in keys else "none"
    found: dict[str, Any] = {
        "ch": ch,
        "in_channels": in_channels,
        "ch_mult": tuple(width // ch for width in widths),
        "num_res_blocks": blocks,
    }
    known = given.get("attn_resolutions")
    if kind != "none" or known is None:  # attention of type "none" has no weights
        attention = tuple(size >> level for level in range(levels) if checkpoint.count(f"down.{level}.attn."))
        same = known is not None and {size >> level for level in range(levels)} & set(known) == set(attention)
        found["attn_resolutions"] = known if same else attention
    if levels > 1:
        found["resamp_with_conv"] = "down.0.downsample.conv.weight" in checkpoint.tensors
    linear, named = given.get("use_linear_attn"), given.get("attn_type")
    meant = "linear" if linear else kind if named is None else named.removesuffix("-xformers")
    if meant != kind or not (linear or named):
        found["attn_type"] = kind
    return found


def _is_linear(config: Mapping[str, Any]) -> bool:
    return bool(config["use_linear_attn"]) or config["attn_type"] == "linear"
