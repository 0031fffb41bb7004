"""What guided-diffusion, latent-diffusion and GLIDE share: the names in their U-Nets, and what the shapes tell."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastdiff.models.checkpoints.layout import REQUIRED, Checkpoint, Derived, MissingKey, renamed

# Ours to theirs.
_OUTER = (
    (r"time_embedding\.", "time_embed."),
    (r"class_embedding\.", "label_emb."),
    (r"conv_in\.", "input_blocks.0.0."),
    (r"middle\.", "middle_block."),
    (r"up\.", "output_blocks."),
    (r"norm_out\.", "out.0."),
    (r"conv_out\.", "out.2."),
)
_INNER = (
    (r"norm1\.", "in_layers.0."),
    (r"conv1\.", "in_layers.2."),
    (r"(scale_shift|shift)\.", "emb_layers.1."),
    (r"norm2\.", "out_layers.0."),
    (r"conv2\.", "out_layers.3."),
    (r"skip\.", "skip_connection."),
    (r"proj\.", "proj_out."),
    (r"kv_context\.", "encoder_kv."),
    (r"blocks\.(\d+)\.(attn\d)\.to_out\.", r"transformer_blocks.\1.\2.to_out.0."),
    (r"blocks\.(\d+)\.ff\.proj_in\.", r"transformer_blocks.\1.ff.net.0.proj."),
    (r"blocks\.(\d+)\.ff\.proj_out\.", r"transformer_blocks.\1.ff.net.2."),
    (r"blocks\.", "transformer_blocks."),
)
_LINEAR = ("qkv.weight", "proj.weight", "kv_context.weight", "proj_in.weight", "proj_out.weight")


def fields_of(config: type) -> dict[str, Any]:
    """The fields of a config's dataclass with their defaults."""
    return {
        field.name: REQUIRED if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(config)
    }


def flat(weight: Tensor) -> Tensor:
    """A 1 x 1 convolution's weight as that of a linear map; biases and linear maps as they are."""
    return weight.flatten(1) if weight.ndim > 2 else weight


def joined(*weights: Tensor) -> Tensor:
    """Projections of the same input as one."""
    return torch.cat([flat(weight) for weight in weights])


def joined_rows(*weights: Tensor) -> Tensor:
    """Convolutions of the same input as one."""
    return torch.cat(weights)


def heads_last(weight: Tensor, *, heads: Callable[[int], int], count: int = 3) -> Tensor:
    """Rows that come head by head, q, k and v of each, to all of q, then k, then v.

    heads: their number, given the channels of q.
    """
    rows = flat(weight)
    number = heads(len(rows) // count)
    return rows.reshape(number, count, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)


def original_unet(name: str, heads: Callable[[str, int], int], *, heads_first: bool) -> str | Derived:
    """Where the tensor `name` of a backbone comes from.

    heads: of the attention in a place ("down", "middle", "up") with so many channels. heads_first: how the projections
    of attention are stored.
    """
    where = re.match(r"(down|middle|up)\.(?:(\d+)\.)?(\d+)\.(.*)", name)
    if where is None:
        return renamed(name, _OUTER)
    place, stage, layer, inner = where.groups()
    theirs = renamed(inner, _INNER)
    if place == "down":
        theirs = theirs.replace("conv.", "op.") if theirs.startswith("conv.") else theirs
        key = f"input_blocks.{int(stage) + 1}.{layer}.{theirs}"
    else:
        key = f"middle_block.{layer}.{theirs}" if place == "middle" else f"output_blocks.{stage}.{layer}.{theirs}"
    if heads_first and inner.startswith(("qkv.", "kv_context.")):
        count = 3 if inner.startswith("qkv.") else 2
        return Derived((key,), partial(heads_last, heads=partial(heads, place), count=count))
    return Derived((key,), flat) if inner.endswith(_LINEAR) else key


def infer_unet(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields that the shapes of a whole U-Net, or of its first half, tell. in_channels: of the first convolution.

    Raises MissingKey.
    """
    found = infer_stem(checkpoint)
    width = found["model_channels"]
    blocks = _blocks(checkpoint)
    stages = [f"input_blocks.{index}." for index in range(1, sum(blocks) + len(blocks))]
    first = [sum(blocks[:level]) + level for level in range(len(blocks))]  # stage of each level
    down = stages[first[1] - 1] if len(blocks) > 1 else None
    updown = down is not None and _has(checkpoint, f"{down}0.in_layers.")
    attention = {
        level: stages[first[level]] for level in range(len(blocks)) if _has(checkpoint, f"{stages[first[level]]}1.")
    }
    found |= {
        "channel_mult": tuple(
            _number(checkpoint.shape(f"{stages[index]}0.in_layers.2.weight")[0] / width) for index in first
        ),
        "num_res_blocks": blocks[0] if len(set(blocks)) == 1 else tuple(blocks),
        "attention_resolutions": tuple(2**level for level in attention),
    }
    if checkpoint.count("output_blocks."):
        found["out_channels"] = checkpoint.shape("out.2.weight")[0]
    if down is not None:
        found["resblock_updown"] = updown
        if not updown:
            found["conv_resample"] = _has(checkpoint, f"{down}0.op.")
    return keep_equivalent(checkpoint.config, found)


def levels_of(checkpoint: Checkpoint) -> dict[str, int]:
    """The level of each stage of residual blocks on the way down, and of the middle, by its prefix."""
    levels: dict[str, int] = {}
    stage, blocks = 1, _blocks(checkpoint)
    for level, count in enumerate(blocks):
        levels |= {f"input_blocks.{index}.": level for index in range(stage, stage + count)}
        stage += count + 1  # what halves the resolution
    return {**levels, "middle_block.": len(blocks) - 1}


def infer_stem(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields that the first layers tell, which the classifier has too."""
    first = checkpoint.shape("input_blocks.0.0.weight")
    inner = checkpoint.shape("input_blocks.1.0.in_layers.2.weight")[0]
    return {
        "in_channels": first[1],
        "model_channels": checkpoint.shape("time_embed.0.weight")[1],
        "dims": len(first) - 2,
        "use_scale_shift_norm": checkpoint.shape("input_blocks.1.0.emb_layers.1.weight")[0] == 2 * inner,
    }


def keep_equivalent(given: Mapping[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What was found, in the spelling of what was given where both mean the same."""
    levels = len(found["channel_mult"])
    width = found["model_channels"]

    def per_level(value: Any) -> tuple:
        return (value,) * levels if isinstance(value, int) else tuple(value)

    same: dict[str, Callable[[Any], Any]] = {
        "attention_resolutions": lambda value: {factor for factor in value if factor in [2**n for n in range(levels)]},
        "channel_mult": lambda value: [int(mult * width) for mult in value],
        "num_res_blocks": per_level,
    }
    for field, meaning in same.items():
        if field in given and field in found and meaning(given[field]) == meaning(found[field]):
            found[field] = given[field]
    return found


def _blocks(checkpoint: Checkpoint) -> list[int]:
    """Residual blocks of each level on the way down."""
    stages = checkpoint.count("output_blocks.")
    if stages == 0:
        return _blocks_of_half(checkpoint)
    # The last stage of each level but the first one ends in something that doubles the resolution.
    ends = [index for index in range(stages) if _doubles(checkpoint, f"output_blocks.{index}.")]
    if not ends:
        return _between(checkpoint, [])
    bounds = [-1, *ends, stages - 1]
    return [after - before - 1 for before, after in pairwise(bounds)][::-1]


def _blocks_of_half(checkpoint: Checkpoint) -> list[int]:
    """Without a way up: residual blocks that halve the resolution look like the others, and config must tell them."""
    stages = checkpoint.count("input_blocks.")
    halvings = [index for index in range(stages) if f"input_blocks.{index}.0.op.weight" in checkpoint.tensors]
    given = checkpoint.config.get("num_res_blocks")
    if not halvings and checkpoint.config.get("resblock_updown"):
        if given is None:
            raise MissingKey(f"the weights of {checkpoint.name} do not tell num_res_blocks; config must give it")
        per_level = itertools.repeat(given) if isinstance(given, int) else iter(given)
        ends = list(itertools.accumulate(count + 1 for count in itertools.islice(per_level, stages)))
        halvings = [end for end in ends if end < stages - 1]
    return _between(checkpoint, halvings)


def _between(checkpoint: Checkpoint, halvings: list[int]) -> list[int]:
    """Stages between those that halve the resolution; means have no weights: stages without any are halvings, too."""
    known = {int(key.split(".")[1]) for key in checkpoint.tensors if key.startswith("input_blocks.")}
    last = max(known, default=0)
    ends = sorted({*halvings, *(index for index in range(last) if index not in known)})
    return [after - before - 1 for before, after in pairwise([0, *ends, last + 1])]


def _doubles(checkpoint: Checkpoint, stage: str) -> bool:
    return any(
        f"{stage}{layer}.{part}.weight" in checkpoint.tensors for layer in (1, 2) for part in ("conv", "in_layers.0")
    )


def _has(checkpoint: Checkpoint, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in checkpoint.tensors)


def _number(value: float) -> float:
    return int(value) if value == int(value) else value
