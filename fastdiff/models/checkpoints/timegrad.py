"""Checkpoints of `EpsilonTheta` in zalandoresearch/pytorch-ts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from fastdiff.models.checkpoints.layout import Checkpoint, Layout, register, renamed
from fastdiff.models.checkpoints.openai_unet import fields_of
from fastdiff.models.timegrad import TimeGrad, TimeGradConfig

# Ours to theirs.
_RULES = (
    (r"proj_in\.", "input_projection."),
    (r"time_embedding\.0\.", "diffusion_embedding.projection1."),
    (r"time_embedding\.1\.", "diffusion_embedding.projection2."),
    (r"cond_embedding\.0\.", "cond_upsampler.linear1."),
    (r"cond_embedding\.1\.", "cond_upsampler.linear2."),
    (r"blocks\.(\d+)\.conv\.", r"residual_layers.\1.dilated_conv."),
    (r"blocks\.(\d+)\.shift\.", r"residual_layers.\1.diffusion_projection."),
    (r"blocks\.(\d+)\.condition\.", r"residual_layers.\1.conditioner_projection."),
    (r"blocks\.(\d+)\.proj\.", r"residual_layers.\1.output_projection."),
    (r"proj_skips\.", "skip_projection."),
    (r"proj_out\.", "output_projection."),
)


@register
class TimeGradLayout(Layout):
    """The class `EpsilonTheta`; in a whole model it is `denoise_fn` of a part. dilation_cycle_length is not told."""

    name = "timegrad"
    about = "the network of TimeGrad"
    fields: ClassVar = fields_of(TimeGradConfig)
    markers = ("input_projection.weight", "diffusion_embedding.projection1.weight", "cond_upsampler.linear1.weight",
               "residual_layers.0.dilated_conv.weight", "skip_projection.weight")  # fmt: skip

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        hidden, features = checkpoint.shape("diffusion_embedding.projection1.weight")
        return {
            "target_dim": checkpoint.shape("cond_upsampler.linear2.weight")[0],
            "cond_length": checkpoint.shape("cond_upsampler.linear1.weight")[1],
            "time_emb_dim": features // 2,
            "residual_layers": checkpoint.count("residual_layers."),
            "residual_channels": checkpoint.shape("input_projection.weight")[0],
            "residual_hidden": hidden,
        }

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return TimeGrad(TimeGradConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str:
        return renamed(name, _RULES)
