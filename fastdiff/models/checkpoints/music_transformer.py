"""Checkpoints of `TransformerDDPM` in magenta/symbolic-music-diffusion: flax's names, joined by points, and layouts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register
from fastdiff.models.checkpoints.openai_unet import fields_of
from fastdiff.models.music_transformer import MusicTransformer, MusicTransformerConfig

_ATTENTION = "MultiHeadDotProductAttention_"
_FILM = {"mlp.0": "Dense_1", "mlp.2": "Dense_2", "scale": "Dense_3", "shift": "Dense_4"}
_LAYER = {"norm1": "LayerNorm_0", "linear1": "Dense_2", "norm2": "LayerNorm_3", "linear2": "Dense_5"}
_PER_BLOCK = 5  # modules that the original numbers: norm, attention, norm, and two of the feed-forward layer


@register
class MusicTransformerLayout(Layout):
    """The class `TransformerDDPM`. The original numbers its modules in the order in which they are made."""

    name = "symbolic-music"
    about = "the music transformer of symbolic-music-diffusion"
    fields: ClassVar = fields_of(MusicTransformerConfig)
    markers = ("Dense_1.kernel", "LayerNorm_2.scale", f"{_ATTENTION}3.query.kernel", "Dense_5.kernel")

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        def number(kind: str) -> int:
            return len({key.split(".")[0] for key in checkpoint.tensors if key.startswith(kind)})

        return {
            "data_channels": checkpoint.shape("Dense_1.kernel")[0],
            "num_layers": number(_ATTENTION),
            "num_heads": checkpoint.shape(f"{_ATTENTION}3.query.kernel")[1],
            "num_mlp_layers": number("DenseFiLM_"),
            "mlp_dims": checkpoint.shape("Dense_5.kernel")[1],
        }

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return MusicTransformer(MusicTransformerConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        module, kind = name.rsplit(".", 1)
        place = self._place(module, config)
        if place.startswith(_ATTENTION):
            parts = ("query", "key", "value") if module.endswith("qkv") else ("out",)
            keys = tuple(f"{place}.{part}.{'kernel' if kind == 'weight' else 'bias'}" for part in parts)
            if len(parts) == 3:
                return Derived(keys, _projections if kind == "weight" else _biases)
            return Derived(keys, _output) if kind == "weight" else keys[0]
        if "norm" in module:
            return f"{place}.{'scale' if kind == 'weight' else 'bias'}"
        return Derived((f"{place}.kernel",), _transposed) if kind == "weight" else f"{place}.bias"

    def _place(self, module: str, config: Mapping[str, Any]) -> str:
        """The original's name of one of our modules."""
        end = 2 + _PER_BLOCK * config["num_layers"]  # of the norm after the blocks
        last = end + 2 + 2 * config["num_mlp_layers"]
        fixed = {"proj_in": "Dense_1", "norm": f"LayerNorm_{end}", "proj_hidden": f"Dense_{end + 1}",
                 "norm_out": f"LayerNorm_{last}", "proj_out": f"Dense_{last + 1}"}  # fmt: skip
        if module in fixed:
            return fixed[module]
        match = re.match(r"(blocks|films|layers)\.(\d+)\.(.*)", module)
        assert match is not None
        index, inner = int(match[2]), match[3]
        if match[1] == "films":
            return f"DenseFiLM_{end + 2 + 2 * index}.{_FILM[inner]}"
        if match[1] == "layers":
            return f"DenseResBlock_{end + 3 + 2 * index}.{_LAYER[inner]}"
        first = 2 + _PER_BLOCK * index
        return {"norm1": f"LayerNorm_{first}", "qkv": f"{_ATTENTION}{first + 1}", "proj": f"{_ATTENTION}{first + 1}",
                "norm2": f"LayerNorm_{first + 2}", "ff.0": f"Dense_{first + 3}",
                "ff.2": f"Dense_{first + 4}"}[inner]  # fmt: skip


def _projections(*kernels: Tensor) -> Tensor:
    """Three of (in, heads, size) to the weight of one linear layer."""
    return torch.cat([kernel.flatten(1).t() for kernel in kernels])


def _biases(*biases: Tensor) -> Tensor:
    return torch.cat([bias.flatten() for bias in biases])


def _transposed(kernel: Tensor) -> Tensor:
    return kernel.t()


def _output(kernel: Tensor) -> Tensor:
    """(heads, size, out) to the weight of a linear layer."""
    return kernel.flatten(0, 1).t()
