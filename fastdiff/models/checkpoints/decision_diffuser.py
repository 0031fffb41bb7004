"""Checkpoints of `TemporalUnet` in anuragajay/decision-diffuser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from fastdiff.models.checkpoints.layout import Checkpoint, Layout, register, renamed
from fastdiff.models.checkpoints.openai_unet import fields_of
from fastdiff.models.temporal_unet import TemporalUnet, TemporalUnetConfig

# Ours to theirs.
_OUTER = (
    (r"time_embedding\.0\.", "time_mlp.1."),
    (r"time_embedding\.2\.", "time_mlp.3."),
    (r"return_embedding\.", "returns_mlp."),
    (r"(down|up)\.(\d+)\.block1\.", r"\1s.\2.0."),
    (r"(down|up)\.(\d+)\.block2\.", r"\1s.\2.1."),
    (r"(down|up)\.(\d+)\.resample\.", r"\1s.\2.2.conv."),
    (r"middle\.block(\d)\.", r"mid_block\1."),
    (r"final\.conv\.", "final_conv.0.block.0."),
    (r"final\.norm\.", "final_conv.0.block.2."),
    (r"conv_out\.", "final_conv.1."),
)
_INNER = (
    (r"(.*)\.block1\.conv\.", r"\1.blocks.0.block.0."),
    (r"(.*)\.block1\.norm\.", r"\1.blocks.0.block.2."),
    (r"(.*)\.block2\.conv\.", r"\1.blocks.1.block.0."),
    (r"(.*)\.block2\.norm\.", r"\1.blocks.1.block.2."),
    (r"(.*)\.shift\.", r"\1.time_mlp.1."),
    (r"(.*)\.skip\.", r"\1.residual_conv."),
)


@register
class DecisionDiffuserLayout(Layout):
    """The class `TemporalUnet`. calc_energy is in no shape, nor are horizon and cond_dim, which change nothing; those
    two are 0 if they are not given."""

    name = "decision-diffuser"
    about = "the temporal U-Net of Decision Diffuser"
    fields: ClassVar = {**fields_of(TemporalUnetConfig), "horizon": 0, "cond_dim": 0}
    markers = ("time_mlp.1.weight", "downs.0.0.blocks.0.block.0.weight", "mid_block1.blocks.0.block.0.weight",
               "final_conv.0.block.0.weight", "final_conv.1.weight")  # fmt: skip

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        shape = checkpoint.shape
        dim = shape("time_mlp.1.weight")[1]
        levels = range(checkpoint.count("downs."))
        _, numbers, kernel = shape("downs.0.0.blocks.0.block.0.weight")
        return {
            "dim": dim,
            "transition_dim": numbers,
            "kernel_size": kernel,
            "dim_mults": tuple(shape(f"downs.{level}.1.blocks.0.block.0.weight")[0] // dim for level in levels),
            "returns_condition": "returns_mlp.0.weight" in checkpoint.tensors,
        }

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return TemporalUnet(TemporalUnetConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str:
        return renamed(renamed(name, _OUTER), _INNER)
