"""Checkpoints of openai/guided-diffusion (ADM) and, without its options, of openai/improved-diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any, ClassVar

from torch import nn

from fastdiff.errors import WeightsError
from fastdiff.models.adm import ADM, ADMClassifier, ADMClassifierConfig, ADMConfig, ADMSuperResolution
from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register
from fastdiff.models.checkpoints.openai_unet import fields_of, flat, infer_stem, infer_unet, original_unet

_STEM = ("time_embed.0.weight", "input_blocks.0.0.weight", "input_blocks.1.0.in_layers.0.weight")


def check_heads(checkpoint: Checkpoint) -> None:
    """The number of heads is in no shape: of a model with attention something must be said about it.

    Raises WeightsError if nothing was.
    """
    told = {"num_heads", "num_head_channels"} & checkpoint.config.keys()
    attention = any(key.endswith((".qkv.weight", ".to_q.weight")) for key in checkpoint.tensors)
    if attention and not told and not checkpoint.config:
        raise WeightsError(
            f"the weights of {checkpoint.name} do not tell the number of heads; config must give num_heads or "
            "num_head_channels (64 for the models that guided-diffusion has published)"
        )


@register
class GuidedDiffusionLayout(Layout):
    """The classes `UNetModel` and `SuperResModel`.

    super_res: for the latter; found from in_channels if that is given, else assumed of a network that takes six
    channels and gives three or six.
    """

    name = "guided-diffusion"
    about = "ADM's U-Net and super-resolution"
    fields: ClassVar = {**fields_of(ADMConfig), "super_res": False}
    markers = (*_STEM, "output_blocks.0.0.in_layers.0.weight", "out.2.weight")

    def detect(self, checkpoint: Checkpoint) -> bool:
        return super().detect(checkpoint) and not _is_other(checkpoint)

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        check_heads(checkpoint)
        found = infer_unet(checkpoint)
        width = found["in_channels"]
        given = checkpoint.config.get("in_channels", 3)
        found["super_res"] = width == 2 * given and (
            "in_channels" in checkpoint.config or found["out_channels"] in (3, 6)
        )
        if found["super_res"]:
            found["in_channels"] = width // 2
        labels = "label_emb.weight" in checkpoint.tensors
        return {**found, "num_classes": checkpoint.shape("label_emb.weight")[0] if labels else None}

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        model = ADMSuperResolution if config["super_res"] else ADM
        return model(_config(ADMConfig, config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        heads = _config(ADMConfig, config).heads
        return original_unet(name, heads, heads_first=not config["use_new_attention_order"])


@register
class ClassifierLayout(Layout):
    """The class `EncoderUNetModel`, the classifier on noisy images."""

    name = "guided-diffusion"
    about = "ADM's classifier"
    fields: ClassVar = fields_of(ADMClassifierConfig)
    markers = (*_STEM, "middle_block.2.out_layers.3.weight")

    def detect(self, checkpoint: Checkpoint) -> bool:
        decoder = any(key.startswith("output_blocks.") for key in checkpoint.tensors)
        return super().detect(checkpoint) and not decoder and not _is_other(checkpoint)

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        check_heads(checkpoint)
        found = infer_stem(checkpoint)
        has = checkpoint.tensors.__contains__
        if has("out.2.positional_embedding"):
            found |= {"pool": "attention", "out_channels": checkpoint.shape("out.2.c_proj.weight")[0]}
            side = isqrt(checkpoint.shape("out.2.positional_embedding")[1] - 1)
            factor = 2 ** (len(checkpoint.config.get("channel_mult", self.fields["channel_mult"])) - 1)
            size = checkpoint.config.get("image_size")
            found["image_size"] = size if size is not None and size // factor == side else side * factor
        elif has("out.3.weight") and has("out.1.weight"):
            found |= {"pool": "spatial_v2", "out_channels": checkpoint.shape("out.3.weight")[0]}
        elif has("out.3.weight"):
            found |= {"pool": "adaptive", "out_channels": checkpoint.shape("out.3.weight")[0]}
        else:
            found |= {"pool": "spatial", "out_channels": checkpoint.shape("out.2.weight")[0]}
        return found

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return ADMClassifier(ADMClassifierConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        adm = ADMClassifierConfig(**config)
        new_order = config["use_new_attention_order"]
        if name == "pool.positions":
            return "out.2.positional_embedding"
        if name.startswith("pool.qkv."):  # always in the new order
            return Derived((name.replace("pool.qkv", "out.2.qkv_proj"),), flat)
        if name.startswith("pool.proj."):
            return Derived((name.replace("pool.proj", "out.2.c_proj"),), flat)
        if name.startswith("proj."):
            return Derived((name.replace("proj", "out.3"),), flat)
        if name.startswith("linear1."):
            return name.replace("linear1", "out.0")
        if name.startswith("linear2."):
            return name.replace("linear2", "out.3" if config["pool"] == "spatial_v2" else "out.2")
        if name.startswith("norm_out.") and config["pool"] == "spatial_v2":
            return name.replace("norm_out", "out.1")
        return original_unet(name, adm.heads, heads_first=not new_order)


def _config(kind: type, config: Mapping[str, Any]) -> Any:
    return kind(**{field: value for field, value in config.items() if field != "super_res"})


def _is_other(checkpoint: Checkpoint) -> bool:
    """Whether this is a U-Net of latent-diffusion, GLIDE or Karlo, which have the names of ADM and
    further ones. Karlo's super-resolution has no attention in the middle."""
    return "middle_block.1.in_layers.0.weight" in checkpoint.tensors or any(
        ".transformer_blocks." in key or key.endswith("encoder_kv.weight") or key.startswith("label_emb.0.")
        for key in checkpoint.tensors
    )
