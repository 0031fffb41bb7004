"""Checkpoints of `KarrasUnet` in lucidrains/denoising-diffusion-pytorch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

from torch import nn

from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register, renamed
from fastdiff.models.checkpoints.openai_unet import fields_of, flat
from fastdiff.models.ddp import KarrasUnet, KarrasUnetConfig

# Ours to theirs.
_OUTER = (
    (r"stem\.", "input_block."),
    (r"frequencies$", "to_time_emb.0.weights"),
    (r"time_embedding\.", "to_time_emb.1."),
    (r"class_embedding\.", "to_class_emb."),
    (r"conv_out\.", "output_block.0."),
    (r"gain$", "output_block.1.gain"),
    (r"down\.(\d+)\.skip\.", r"downs.\1.downsample_conv."),
    (r"down\.", "downs."),
    (r"middle\.", "mids."),
    (r"up\.", "ups."),
)
_INNER = (
    (r"(.*)\.skip\.", r"\1.res_conv."),
    (r"(.*)\.scale\.", r"\1.to_emb.0."),
    (r"(.*s\.\d+)\.gain$", r"\1.to_emb.1.gain"),
    (r"(.*)\.conv1\.", r"\1.block1.1."),
    (r"(.*)\.conv2\.", r"\1.block2.2."),
    (r"(.*)\.attention\.memory$", r"\1.attn.mem_kv"),
    (r"(.*)\.attention\.qkv\.", r"\1.attn.to_qkv."),
    (r"(.*)\.attention\.proj\.", r"\1.attn.to_out."),
)


@register
class KarrasLayout(Layout):
    """The class `KarrasUnet`. image_size is not told; config must give it."""

    name = "ddp"
    about = "KarrasUnet of denoising-diffusion-pytorch"
    fields: ClassVar = fields_of(KarrasUnetConfig)
    markers = ("input_block.weight", "to_time_emb.0.weights", "output_block.1.gain", "downs.0.block1.1.weight",
               "mids.0.block1.1.weight")  # fmt: skip

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        shape, config = checkpoint.shape, checkpoint.config
        dim, inputs = shape("input_block.weight")[:2]
        channels = shape("output_block.0.weight")[0]
        stages = checkpoint.count("downs.")
        halving = [n for n in range(stages) if f"downs.{n}.downsample_conv.weight" in checkpoint.tensors]
        widths = [dim, *(shape(f"downs.{n}.downsample_conv.weight")[0] for n in halving)]
        found: dict[str, Any] = {
            "dim": dim,
            "channels": channels,
            "self_condition": inputs - 1 == 2 * channels,
            "num_downsamples": len(halving),
            "num_blocks_per_stage": (halving or [stages])[0],
            "fourier_dim": 2 * shape("to_time_emb.0.weights")[0],
            "num_classes": shape("to_class_emb.weight")[1] if "to_class_emb.weight" in checkpoint.tensors else None,
        }
        capped = any(wide != 2 * narrow for narrow, wide in pairwise(widths))
        if capped or config.get("dim_max", self.fields["dim_max"]) < widths[-1]:
            found["dim_max"] = widths[-1]
        keys = [key for key in checkpoint.tensors if key.endswith(".attn.mem_kv")]
        if keys:
            found["attn_dim_head"] = shape(keys[0])[3]
        if "image_size" in config:
            found["attn_res"] = self._resolutions(checkpoint, config, [0, *halving])
        return found

    def _resolutions(self, checkpoint: Checkpoint, config: Mapping[str, Any], first: list[int]) -> Any:
        """attn_res, of the first block of each level, at the highest of the one that leads up to it; as given, where
        that means the same."""
        sizes = [config["image_size"] >> level for level in range(len(first))]
        keys = [f"downs.{n}.attn.mem_kv" for n in first]
        after = (first[1:] or [0])[0] + 1  # blocks of the highest level on the way up
        keys[0] = f"ups.{checkpoint.count('ups.') - after - 1}.attn.mem_kv"
        told = {size for size, key in zip(sizes, keys) if key in checkpoint.tensors}
        given = config.get("attn_res", self.fields["attn_res"])
        same = told == {size for size in ((given,) if isinstance(given, int) else given) if size in sizes}
        return given if same else tuple(sorted(told, reverse=True))

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return KarrasUnet(KarrasUnetConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        theirs = renamed(renamed(name, _OUTER), _INNER)
        return Derived((theirs,), flat) if re.search(r"\.attn\.to_(qkv|out)\.weight$", theirs) else theirs
