"""Checkpoints of diffusers' AutoencoderKL and VQModel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from fastdiff.errors import expect, unknown
from fastdiff.models.autoencoder import AutoencoderConfig, AutoencoderKL, AutoencoderVQ
from fastdiff.models.checkpoints.diffusers_unet import has_old_names, original_attention
from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register

_BLOCKS = ("DownEncoderBlock2D", "UpDecoderBlock2D", "AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D")
_SHARED: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "mid_block_add_attention": True,
    "force_upcast": True,
    "old_attention_names": False,  # not diffusers': read from the weights
}


class AutoencoderFamily(Layout):
    """What the two classes share. scaling_factor and what else belongs to the diffusion in the latents is for
    `LatentDiffusion`, not for the autoencoder."""

    name = "diffusers"

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        shape = checkpoint.shape
        levels = checkpoint.count("encoder.down_blocks.")
        keys = checkpoint.tensors.keys()

        def types(prefix: str, plain: str) -> tuple[str, ...]:
            return tuple(
                f"Attn{plain}" if f"{prefix}.{level}.attentions.0.group_norm.weight" in keys else plain
                for level in range(levels)
            )

        return {
            "in_channels": shape("encoder.conv_in.weight")[1],
            "out_channels": shape("decoder.conv_out.weight")[0],
            "block_out_channels": tuple(
                shape(f"encoder.down_blocks.{level}.resnets.0.conv1.weight")[0] for level in range(levels)
            ),
            "layers_per_block": checkpoint.count("encoder.down_blocks.0.resnets."),
            "latent_channels": shape("decoder.conv_in.weight")[1],
            "down_block_types": types("encoder.down_blocks", "DownEncoderBlock2D"),
            "up_block_types": types("decoder.up_blocks", "UpDecoderBlock2D"),
            "mid_block_add_attention": "encoder.mid_block.attentions.0.group_norm.weight" in keys,
            "old_attention_names": has_old_names(checkpoint),
        }

    def common(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of an autoencoder's config."""
        channels, size = config["block_out_channels"], 1 << 30
        for field in ("down_block_types", "up_block_types"):
            for block in config[field]:
                if block not in _BLOCKS:
                    raise unknown(f"block in {field}", block, _BLOCKS)
        if config["act_fn"] not in ("silu", "swish"):
            raise unknown("act_fn", config["act_fn"], ("silu", "swish"))
        attends = [block.startswith("Attn") for block in config["down_block_types"]]
        expect(
            attends == [block.startswith("Attn") for block in config["up_block_types"]][::-1],
            "down_block_types and up_block_types must have attention at the same levels",
        )
        return {
            "ch": channels[0],
            "out_ch": config["out_channels"],
            "in_channels": config["in_channels"],
            "z_channels": config["latent_channels"],
            "num_res_blocks": config["layers_per_block"],
            "resolution": size,  # only to name the levels with attention
            "attn_resolutions": tuple(size >> level for level, attention in enumerate(attends) if attention),
            "ch_mult": tuple(c / channels[0] for c in channels),
            "norm_groups": config["norm_num_groups"],
            "mid_attention": config["mid_block_add_attention"],
        }

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        where = re.match(r"(encoder|decoder)\.(down|middle|up)\.(?:(\d+)\.)?(\d+)\.(.*)", name)
        if where is None:
            return name.replace("coder.norm_out.", "coder.conv_norm_out.")
        coder, place, stage, layer, inner = where.groups()
        inner = re.sub(r"^skip\.", "conv_shortcut.", inner)
        attention = inner.split(".")[0] in ("norm", "qkv", "proj")
        if place == "middle":
            block, index = f"{coder}.mid_block", 0 if attention or layer == "0" else 1
        else:
            level, index = divmod(int(stage), config["layers_per_block"] + 1)
            block = f"{coder}.{place}_blocks.{level}"
        if attention:
            return original_attention(f"{block}.attentions.{index}", inner, old=config["old_attention_names"])
        if inner.startswith("conv."):
            return f"{block}.{'downsamplers' if place == 'down' else 'upsamplers'}.0.{inner}"
        return f"{block}.resnets.{index}.{inner}"


_MARKERS = ("encoder.conv_in.weight", "encoder.down_blocks.0.resnets.0.norm1.weight", "decoder.conv_norm_out.weight")


@register
class AutoencoderKLLayout(AutoencoderFamily):
    """AutoencoderKL."""

    class_name = about = "AutoencoderKL"
    fields: ClassVar = {
        **_SHARED,
        "latent_channels": 4,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    }
    markers = _MARKERS

    def detect(self, checkpoint: Checkpoint) -> bool:
        if "_class_name" in checkpoint.config:
            return super().detect(checkpoint)
        return super().detect(checkpoint) and "quantize.embedding.weight" not in checkpoint.tensors

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        keys = checkpoint.tensors.keys()
        return {
            **super().infer(checkpoint),
            "use_quant_conv": "quant_conv.weight" in keys,
            "use_post_quant_conv": "post_quant_conv.weight" in keys,
        }

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        convs = (config["use_quant_conv"], config["use_post_quant_conv"])
        return AutoencoderKL(AutoencoderConfig(**self.common(config), quant_convs=convs))


@register
class VQModelLayout(AutoencoderFamily):
    """VQModel."""

    class_name = about = "VQModel"
    fields: ClassVar = {
        **_SHARED,
        "latent_channels": 3,
        "num_vq_embeddings": 256,
        "vq_embed_dim": None,
        "norm_type": "group",
        "lookup_from_codebook": False,
        "force_upcast": False,
    }
    markers = (*_MARKERS, "quantize.embedding.weight")

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        entries, channels = checkpoint.shape("quantize.embedding.weight")
        found = {**super().infer(checkpoint), "num_vq_embeddings": entries}
        if checkpoint.config.get("vq_embed_dim") is not None or channels != found["latent_channels"]:
            found["vq_embed_dim"] = channels
        return found

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        if config["norm_type"] != "group":
            raise unknown("norm_type", config["norm_type"], ("group",))
        more = {"double_z": False, "embed_dim": config["vq_embed_dim"], "n_embed": config["num_vq_embeddings"]}
        return AutoencoderVQ(AutoencoderConfig(**self.common(config), **more))
