"""Checkpoints of the autoencoders of CompVis/latent-diffusion and Stable Diffusion, and of DDPM's `Model`, which are
named in the same way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from fastdiff.models.autoencoder import AutoencoderConfig, AutoencoderKL, AutoencoderVQ
from fastdiff.models.checkpoints.latent_diffusion import PARTS
from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register, renamed
from fastdiff.models.checkpoints.openai_unet import fields_of, flat, joined
from fastdiff.models.ddpm import DDPM, DDPMConfig


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

    def unused(self, key: str, config: Mapping[str, Any]) -> bool:
        # the projections of the time, which a network without times has as well
        return not config["use_timestep"] and ".temb_proj." in key


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
