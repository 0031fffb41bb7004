"""Checkpoints of diffusers' ControlNetModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from fastdiff.models.checkpoints.diffusers_unet import UNet2DConditionLayout, without_ours
from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register, renamed
from fastdiff.models.checkpoints.openai_unet import fields_of
from fastdiff.models.controlnet_2d import ControlNet2D, ControlNet2DConfig

# The arguments of ControlNetModel.
_FIELDS = (
    "in_channels", "conditioning_channels", "flip_sin_to_cos", "freq_shift", "down_block_types", "mid_block_type",
    "only_cross_attention", "block_out_channels", "layers_per_block", "downsample_padding", "mid_block_scale_factor",
    "act_fn", "norm_num_groups", "norm_eps", "cross_attention_dim", "transformer_layers_per_block", "encoder_hid_dim",
    "encoder_hid_dim_type", "attention_head_dim", "num_attention_heads", "use_linear_projection", "class_embed_type",
    "addition_embed_type", "addition_time_embed_dim", "num_class_embeds", "upcast_attention",
    "resnet_time_scale_shift", "projection_class_embeddings_input_dim", "controlnet_conditioning_channel_order",
    "conditioning_embedding_out_channels", "global_pool_conditions", "addition_embed_type_num_heads",
    "old_attention_names",
)  # fmt: skip
# Ours to theirs, but for the layers of the hint.
_OWN = ((r"zero_convs\.", "controlnet_down_blocks."), (r"zero_middle\.", "controlnet_mid_block."))


@register
class ControlNetModelLayout(UNet2DConditionLayout):
    """ControlNetModel: the names of UNet2DConditionModel's way down, and its own."""

    class_name = about = "ControlNetModel"
    fields: ClassVar = {field: {**fields_of(ControlNet2DConfig), **UNet2DConditionLayout.fields}[field]
                        for field in _FIELDS}  # fmt: skip
    markers = ("time_embedding.linear_1.weight", "conv_in.weight", "controlnet_cond_embedding.conv_in.weight",
               "controlnet_mid_block.weight")  # fmt: skip

    def detect(self, checkpoint: Checkpoint) -> bool:
        return Layout.detect(self, checkpoint)

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        found = super().infer(checkpoint)
        widths = [checkpoint.shape("controlnet_cond_embedding.conv_in.weight")[0]]
        blocks = checkpoint.count("controlnet_cond_embedding.blocks.")
        widths += [
            checkpoint.shape(f"controlnet_cond_embedding.blocks.{index}.weight")[0] for index in range(1, blocks, 2)
        ]
        return {
            **found,
            "conditioning_channels": checkpoint.shape("controlnet_cond_embedding.conv_in.weight")[1],
            "conditioning_embedding_out_channels": tuple(widths),
        }

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        up = ("UpBlock2D",) * len(config["block_out_channels"])  # of the U-Net: there is no way up here
        unused = {"encoder_hid_dim": None, "encoder_hid_dim_type": None}
        given = {**without_ours(config), **unused}
        return ControlNet2D(ControlNet2DConfig(out_channels=config["in_channels"], up_block_types=up, **given))

    def unused(self, key: str, config: Mapping[str, Any]) -> bool:
        # a projection of the context, which the original makes and does not use
        return config["encoder_hid_dim"] is not None and key.startswith("encoder_hid_proj.")

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        if name.startswith("hint."):
            _, index, kind = name.split(".")
            last = 2 * (2 * len(config["conditioning_embedding_out_channels"]) - 1)
            part = {0: "conv_in", last: "conv_out"}.get(int(index), f"blocks.{int(index) // 2 - 1}")
            return f"controlnet_cond_embedding.{part}.{kind}"
        theirs = renamed(name, _OWN)
        return theirs if theirs != name else super().original(name, config)
