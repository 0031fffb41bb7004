"""Checkpoints of kakaobrain/karlo: the prior, the decoder and the super-resolution."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from torch import nn

from fastdiff.models.checkpoints.layout import REQUIRED, Checkpoint, Derived, Layout, register, renamed
from fastdiff.models.checkpoints.openai_unet import fields_of, heads_last, infer_unet, original_unet
from fastdiff.models.karlo import KarloDecoder, KarloDecoderConfig, KarloUNet, KarloUNetConfig
from fastdiff.models.prior import Prior, PriorConfig

# Ours to theirs.
_PRIOR = (
    (r"time_embedding\.", "time_embed."),
    (r"condition_proj\.", "text_emb_proj."),
    (r"text_proj\.", "text_enc_proj."),
    (r"proj_in\.", "clip_img_proj."),
    (r"proj_out\.", "out_proj."),
    (r"query$", "prd_emb"),
    (r"positions$", "positional_embedding"),
    (r"norm_out\.", "final_ln."),
    (r"blocks\.(\d+)\.norm1\.", r"transformer.resblocks.\1.ln_1."),
    (r"blocks\.(\d+)\.norm2\.", r"transformer.resblocks.\1.ln_2."),
    (r"blocks\.(\d+)\.qkv\.", r"transformer.resblocks.\1.attn.c_qkv."),
    (r"blocks\.(\d+)\.proj\.", r"transformer.resblocks.\1.attn.c_proj."),
    (r"blocks\.(\d+)\.mlp\.0\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"blocks\.(\d+)\.mlp\.2\.", r"transformer.resblocks.\1.mlp.c_proj."),
)
_CONDITIONING = (
    (r"conditioning\.null_image$", "cf_param"),
    (r"conditioning\.text_to_time\.", "text_feat_proj."),
    (r"conditioning\.image_to_time\.", "clip_emb."),
    (r"conditioning\.image_to_context\.", "clip_tok_proj."),
    (r"conditioning\.tokens_to_context\.", "text_seq_proj.0."),
    (r"conditioning\.norm\.", "text_seq_proj.1."),
)
_STEM = ("input_blocks.0.0.weight", "input_blocks.1.0.in_layers.0.weight", "out.2.weight")


class _Karlo(Layout):
    name = "karlo"
    wrapped_as = "model."  # in the published files of the prior and of the decoder


@register
class KarloPriorLayout(_Karlo):
    """The class `PriorTransformer`. The number of heads is in no shape; the published model has heads of 64."""

    about = "Karlo's prior"
    fields: ClassVar = {"text_ctx": REQUIRED, "xf_width": REQUIRED, "xf_layers": REQUIRED, "xf_heads": REQUIRED,
                        "xf_final_ln": REQUIRED, "clip_dim": REQUIRED}  # fmt: skip
    markers = ("prd_emb", "clip_img_proj.weight", "text_enc_proj.weight", "transformer.resblocks.0.attn.c_qkv.weight")

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        width, channels = checkpoint.shape("clip_img_proj.weight")
        found = {
            "text_ctx": checkpoint.shape("positional_embedding")[1] - 4,
            "xf_width": width,
            "xf_layers": checkpoint.count("transformer.resblocks."),
            "xf_final_ln": "final_ln.weight" in checkpoint.tensors,
            "clip_dim": channels,
        }
        if width == 2048 and "xf_heads" not in checkpoint.config:
            found["xf_heads"] = 32
        return found

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return Prior(
            PriorConfig(
                num_attention_heads=config["xf_heads"],
                attention_head_dim=config["xf_width"] // config["xf_heads"],
                num_layers=config["xf_layers"],
                embedding_dim=config["clip_dim"],
                num_embeddings=config["text_ctx"],
                norm_out=config["xf_final_ln"],
                statistics=False,
            )
        )

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        key = renamed(name, _PRIOR)
        if ".c_qkv." not in key:
            return key
        return Derived((key,), partial(heads_last, heads=lambda channels: config["xf_heads"]))


@register
class KarloDecoderLayout(_Karlo):
    """The class `PLMImUNet`. The number of heads is in no shape: heads of 64 channels, the published ones, if nothing
    is said of it."""

    about = "Karlo's decoder"
    fields: ClassVar = {
        **{field: default for field, default in fields_of(KarloDecoderConfig).items() if field != "super_res"},
        "text_ctx": 77,
    }
    markers = ("clip_tok_proj.weight", "text_seq_proj.0.weight", "clip_emb.weight", "time_embed.0.weight", *_STEM)

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        found = infer_unet(checkpoint)
        width, channels = checkpoint.shape("text_seq_proj.0.weight")
        found |= {
            "xf_width": width,
            "clip_dim": channels,
            "clip_emb_mult": checkpoint.shape("clip_tok_proj.weight")[0] // width,
            "use_middle_attention": _attends_in_the_middle(checkpoint),
        }
        learned = "cf_param" in checkpoint.tensors
        if (checkpoint.config.get("clip_emb_drop", 0.0) > 0) != learned:
            found["clip_emb_drop"] = 0.1 if learned else 0.0
        return found | _published_heads(checkpoint)

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return KarloDecoder(KarloDecoderConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        if name.startswith("conditioning."):
            return renamed(name, _CONDITIONING)
        return original_unet(name, KarloDecoderConfig(**config).heads, heads_first=True)


@register
class KarloUNetLayout(_Karlo):
    """The classes `UNetModel` and `SuperResUNetModel`.

    super_res: for the latter; found from in_channels, 3 if not given. Without a layout's name only one that has no
    attention in the middle is taken for Karlo's. Of one without times the shapes tell nothing.
    """

    about = "Karlo's super-resolution"
    fields: ClassVar = fields_of(KarloUNetConfig)
    parts: ClassVar = {"first_steps": "model_first_steps.", "last_step": "model_last_step."}
    markers = (*_STEM, "middle_block.1.in_layers.0.weight")

    def detect(self, checkpoint: Checkpoint) -> bool:
        return super().detect(checkpoint) and self.fits(checkpoint)

    def fits(self, checkpoint: Checkpoint) -> bool:
        return all(key in checkpoint.tensors for key in _STEM) and "clip_tok_proj.weight" not in checkpoint.tensors

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        if "time_embed.0.weight" not in checkpoint.tensors:
            width = checkpoint.shape("input_blocks.0.0.weight")[1]
            given = checkpoint.config.get("in_channels", width)
            return {"use_time_embedding": False, "super_res": width == 2 * given}
        found = infer_unet(checkpoint)
        found["use_middle_attention"] = _attends_in_the_middle(checkpoint)
        given = checkpoint.config.get("in_channels", 3)
        found["super_res"] = found["in_channels"] == 2 * given
        if found["super_res"]:
            found["in_channels"] = given
        vector = "clip_emb.weight" in checkpoint.tensors
        found["clip_dim"] = checkpoint.shape("clip_emb.weight")[1] if vector else None
        return found | _published_heads(checkpoint)

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return KarloUNet(KarloUNetConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        if name.startswith("vector_proj."):
            return name.replace("vector_proj", "clip_emb")
        key = original_unet(name, KarloUNetConfig(**config).heads, heads_first=True)
        if isinstance(key, str) and not config["use_time_embedding"]:
            return key.replace("out_layers.3.", "out_layers.2.")  # a layer less before the convolution
        return key


def _attends_in_the_middle(checkpoint: Checkpoint) -> bool:
    return "middle_block.1.qkv.weight" in checkpoint.tensors


def _published_heads(checkpoint: Checkpoint) -> dict[str, Any]:
    """Heads of 64 channels, where nothing is said of them."""
    told = {"num_heads", "num_head_channels"} & checkpoint.config.keys()
    attends = any(key.endswith(".qkv.weight") for key in checkpoint.tensors)
    return {"num_head_channels": 64} if attends and not told else {}
