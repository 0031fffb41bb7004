"""Checkpoints of lucidrains/video-diffusion-pytorch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register, renamed
from fastdiff.models.checkpoints.openai_unet import fields_of
from fastdiff.models.video_unet import Unet3D, Unet3DConfig

# Ours to theirs.
_OUTER = (
    (r"bias\.table\.", "time_rel_pos_bias.relative_attention_bias."),
    (r"stem\.", "init_conv."),
    (r"stem_attention\.", "init_temporal_attn."),
    (r"time_embedding\.0\.", "time_mlp.1."),
    (r"time_embedding\.2\.", "time_mlp.3."),
    (r"null_cond$", "null_cond_emb"),
    (r"down\.(\d+)\.block1\.", r"downs.\1.0."),
    (r"down\.(\d+)\.block2\.", r"downs.\1.1."),
    (r"down\.(\d+)\.spatial\.", r"downs.\1.2."),
    (r"down\.(\d+)\.temporal\.", r"downs.\1.3."),
    (r"down\.(\d+)\.resample\.", r"downs.\1.4."),
    (r"up\.(\d+)\.block1\.", r"ups.\1.0."),
    (r"up\.(\d+)\.block2\.", r"ups.\1.1."),
    (r"up\.(\d+)\.spatial\.", r"ups.\1.2."),
    (r"up\.(\d+)\.temporal\.", r"ups.\1.3."),
    (r"up\.(\d+)\.resample\.", r"ups.\1.4."),
    (r"middle\.block(\d)\.", r"mid_block\1."),
    (r"middle\.(spatial|temporal)\.", r"mid_\1_attn."),
    (r"final\.", "final_conv.0."),
    (r"conv_out\.", "final_conv.1."),
)
_INNER = (
    (r"(.*)\.scale_shift\.", r"\1.mlp.1."),
    (r"(.*)\.conv([12])\.", r"\1.block\2.proj."),
    (r"(.*)\.norm([12])\.weight", r"\1.block\2.norm.gamma"),
    (r"(.*)\.skip\.", r"\1.res_conv."),
    (r"(.*)\.norm\.weight", r"\1.fn.norm.gamma"),
    (r"(.*)\.attention\.qkv\.", r"\1.fn.fn.fn.to_qkv."),
    (r"(.*)\.attention\.proj\.", r"\1.fn.fn.fn.to_out."),
    (r"(.*)\.qkv\.", r"\1.fn.fn.to_qkv."),
    (r"(.*)\.proj\.(weight|bias)$", r"\1.fn.fn.to_out.\2"),
)
_ROTARY = ".rotary_emb.freqs"  # one tensor under many keys
_BERT = 768


@register
class VideoDiffusionLayout(Layout):
    """The class `Unet3D`."""

    name = "video-diffusion"
    about = "Unet3D of video-diffusion-pytorch"
    fields: ClassVar = fields_of(Unet3DConfig)
    markers = (
        "init_conv.weight",
        "time_rel_pos_bias.relative_attention_bias.weight",
        "init_temporal_attn.fn.fn.fn.to_qkv.weight",
        "mid_spatial_attn.fn.fn.fn.to_qkv.weight",
        "final_conv.1.weight",
    )

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        shape, config = checkpoint.shape, checkpoint.config
        dim, channels, *_, kernel = shape("init_conv.weight")
        levels = checkpoint.count("downs.")
        heads = shape("time_rel_pos_bias.relative_attention_bias.weight")[1]
        found: dict[str, Any] = {
            "dim": dim,
            "channels": channels,
            "init_kernel_size": kernel,
            "dim_mults": tuple(shape(f"downs.{level}.1.block1.proj.weight")[0] // dim for level in range(levels)),
            "attn_heads": heads,
            "attn_dim_head": shape("init_temporal_attn.fn.fn.fn.to_qkv.weight")[0] // (3 * heads),
            "use_sparse_linear_attn": "downs.0.2.fn.fn.to_qkv.weight" in checkpoint.tensors,
        }
        out_dim = shape("final_conv.1.weight")[0]
        if config.get("out_dim") is not None or out_dim != channels:
            found["out_dim"] = out_dim
        condition = shape("null_cond_emb")[1] if "null_cond_emb" in checkpoint.tensors else None
        if not (condition == _BERT and config.get("use_bert_text_cond")):
            found |= {"cond_dim": condition, "use_bert_text_cond": False}
        return found

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return Unet3D(Unet3DConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        if name == "frequencies":
            return f"init_temporal_attn.fn.fn.fn{_ROTARY}"
        theirs = renamed(renamed(name, _OUTER), _INNER)
        if theirs.endswith(".gamma"):
            return Derived((theirs,), Tensor.flatten)
        by_frame = re.search(r"(init_conv|proj|res_conv|final_conv\.1|s\.\d+\.4)\.weight$", theirs)
        if by_frame:
            return Derived((theirs,), _without_frames)
        if theirs.endswith((".fn.fn.to_qkv.weight", ".fn.fn.to_out.weight")) and ".fn.fn.fn." not in theirs:
            return Derived((theirs,), _linear)
        return theirs

    def unused(self, key: str, config: Mapping[str, Any]) -> bool:
        return key.endswith(_ROTARY)


def _without_frames(weight: Tensor) -> Tensor:
    """The weight of a convolution over one frame as that of one over its pixels."""
    return weight.squeeze(2) if weight.ndim == 5 else weight


def _linear(weight: Tensor) -> Tensor:
    """The weight of a 1 x 1 convolution as that of a linear map."""
    return weight.flatten(1)
