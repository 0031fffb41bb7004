"""Checkpoints of lucidrains/imagen-pytorch's `Unet`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register, renamed
from fastdiff.models.checkpoints.openai_unet import fields_of
from fastdiff.models.imagen import ImagenConfig, ImagenUNet

# Ours to theirs; of attention first, which is in blocks of several kinds.
_ATTENTION = (
    (r"norm\.gain$", "norm.g"),
    (r"to_out\.", "to_out.0."),
    (r"norm_out\.gain$", "to_out.1.g"),
    (r"norm_out\.", "to_out.1."),
)
_RESIDUAL = (
    (r"norm1\.gain$", "block1.norm.gamma"),
    (r"conv1\.", "block1.project."),
    (r"scale_shift\.", "time_mlp.1."),
    (r"norm2\.gain$", "block2.norm.gamma"),
    (r"conv2\.", "block2.project."),
    (r"gate\.", "gca."),
    (r"skip\.", "res_conv."),
)
_RULES = {
    "residual": _RESIDUAL,
    "parallel": ((r"conv3\.", "fns.0."), (r"conv1\.", "fns.1.")),
    "shuffle": ((r"conv\.", "net.0."),),
    "nearest": ((r"conv\.", "1."),),
}
_COMBINED = "upsample_combiner.fmap_convs."
_OUTER = (
    (r"conv_in\.", "init_conv."),
    (r"conv_out\.", "final_conv."),
    (r"norm_context\.", "norm_cond."),
    (r"time\.frequencies$", "to_time_hiddens.0.weights"),
    (r"time\.hidden\.", "to_time_hiddens.1."),
    (r"time\.to_embedding\.", "to_time_cond.0."),
    (r"time\.to_tokens\.", "to_time_tokens.0."),
    (r"low_res_time\.frequencies$", "to_lowres_time_hiddens.0.weights"),
    (r"low_res_time\.hidden\.", "to_lowres_time_hiddens.1."),
    (r"low_res_time\.to_embedding\.", "to_lowres_time_cond.0."),
    (r"low_res_time\.to_tokens\.", "to_lowres_time_tokens.0."),
    (r"text\.proj\.", "text_to_cond."),
    (r"text\.null_tokens$", "null_text_embed"),
    (r"text\.null_embedding$", "null_text_hidden"),
    (r"text\.norm\.", "to_text_non_attn_cond.0."),
    (r"text\.to_embedding\.0\.", "to_text_non_attn_cond.1."),
    (r"text\.to_embedding\.2\.", "to_text_non_attn_cond.3."),
    (r"text\.pool\.positions\.", "attn_pool.pos_emb."),
    (r"text\.pool\.latents$", "attn_pool.latents"),
    (r"text\.pool\.norm_mean\.gain$", "attn_pool.to_latents_from_mean_pooled_seq.0.g"),
    (r"text\.pool\.proj_mean\.", "attn_pool.to_latents_from_mean_pooled_seq.1."),
    (r"combine\.norms\.(\d+)\.gain$", r"upsample_combiner.fmap_convs.\1.norm.gamma"),
    (r"combine\.convs\.(\d+)\.", r"upsample_combiner.fmap_convs.\1.project."),
)


@register
class ImagenLayout(Layout):
    """The class `Unet`, and its published sizes, which are subclasses with other defaults.

    A level with both kinds of attention to the conditions, or among the pixels, has that which the original makes.
    """

    name = "imagen"
    about = "the U-Net of imagen-pytorch"
    fields: ClassVar = fields_of(ImagenConfig)
    parts: ClassVar = {f"unets.{index}": f"unets.{index}." for index in range(3)}  # in the file of a whole `Imagen`
    markers = (
        "to_time_hiddens.0.weights",
        "to_time_tokens.0.weight",
        "mid_block1.block1.norm.gamma",
        "mid_block1.cross_attn.null_kv",
        "ups.0.0.block1.project.weight",
        "final_conv.weight",
    )

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return _Shapes(checkpoint).fields()

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return ImagenUNet(ImagenConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        where = re.match(r"(final|text\.pool|middle\.\d+|(?:down|up)\.\d+\.\d+)\.(.*)", name)
        outer = renamed(name, _OUTER)
        if where is None or outer != name:
            return Derived((outer,), Tensor.flatten) if outer.endswith(".g") else outer
        module, inner = where.groups()
        prefix, kind = _places(ImagenConfig(**config))[module]
        return _within(prefix, kind, inner)

    def unused(self, key: str, config: Mapping[str, Any]) -> bool:
        """What a model without texts has of them."""
        return not config["cond_on_text"] and (key.startswith("attn_pool.") or key.startswith("null_text_"))


def _within(prefix: str, kind: str, inner: str) -> str | Derived:
    """Where the tensor `inner` of one of our layers comes from. prefix: the original's name of the layer."""
    if kind == "transformer":
        _, index, part, rest = inner.split(".", 3)
        theirs = renamed(rest, _ATTENTION) if part == "0" else rest.replace("gain", "g")
        key = f"{prefix}.layers.{index}.{part}.{theirs}"
        return Derived((key,), Tensor.flatten) if key.endswith(".g") else key
    if kind == "residual" and inner.startswith("cross."):
        return f"{prefix}.cross_attn.{renamed(inner.removeprefix('cross.'), _ATTENTION)}"
    if kind == "halving":
        return Derived((f"{prefix}.1.{inner}",), _unshuffled)
    return f"{prefix}.{renamed(inner, _RULES[kind])}"


def _places(config: ImagenConfig) -> dict[str, tuple[str, str]]:
    """The original's name and the kind of each of our layers with weights, as `ImagenUNet` puts them together."""
    places = {"final": ("final_res_block", "residual"), "text.pool": ("attn_pool", "transformer")}
    stage, waiting = 0, [("init_resnet_block", "residual")] if config.memory_efficient else []

    def take(where: str, layers: list[tuple[str, str]]) -> None:
        places.update({f"{where}.{index}": layer for index, layer in enumerate(layers)})

    count = len(config.levels)
    for index, level in enumerate(config.levels):
        name = f"downs.{index}"
        if config.memory_efficient:
            waiting.append((f"{name}.0", "halving"))
        waiting.append((f"{name}.1", "residual"))
        for block in range(level.blocks):
            take(f"down.{stage}", [*waiting, (f"{name}.2.{block}", "residual")])
            stage, waiting = stage + 1, []
        take(f"down.{stage}", [*waiting, (f"{name}.3", "transformer")])
        stage, waiting = stage + 1, []
        if not config.memory_efficient:
            waiting.append((f"{name}.4", "parallel" if index == count - 1 else "halving"))
    attention = [("mid_attn", "transformer")] if config.attend_at_middle else []
    take("middle", [*waiting, ("mid_block1", "residual"), *attention, ("mid_block2", "residual")])
    stage = 0
    for index, level in enumerate(reversed(config.levels)):
        name = f"ups.{index}"
        blocks = [(f"{name}.0", "residual"), *((f"{name}.1.{block}", "residual") for block in range(level.blocks))]
        for layer in blocks[:-1]:
            take(f"up.{stage}", [layer])
            stage += 1
        doubling = "shuffle" if config.pixel_shuffle_upsample else "nearest"
        take(f"up.{stage}", [blocks[-1], (f"{name}.2", "transformer"), (f"{name}.3", doubling)])
        stage += 1
    return places


def _unshuffled(weight: Tensor) -> Tensor:
    """A 1 x 1 convolution after a pixel unshuffle as one of 2 x 2."""
    return weight.reshape(len(weight), -1, 2, 2) if weight.ndim > 1 else weight


class _Shapes:
    """What the shapes of a checkpoint tell of the config."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.config = checkpoint, checkpoint.config
        self.low_res = self.has("to_lowres_time_hiddens.0.weights")
        self.dim = self.rows("to_time_hiddens.1.weight") // (8 if self.low_res else 4)
        self.levels = checkpoint.count("downs.")

    def has(self, key: str) -> bool:
        return key in self.checkpoint.tensors

    def rows(self, key: str) -> int:
        return self.checkpoint.shape(key)[0]

    def fields(self) -> dict[str, Any]:
        given = self.config
        told = {**self._conditions(), **self._attention(), **self._ends()}
        per_level = {field: value for field, value in self._levels().items() if field not in given}
        return {**told, **per_level, "dim": self.dim, "lowres_cond": self.low_res}

    def _conditions(self) -> dict[str, Any]:
        condition = self.rows("norm_cond.weight")
        found: dict[str, Any] = {
            "num_time_tokens": self.rows("to_time_tokens.0.weight") // condition,
            "learned_sinu_pos_emb_dim": 2 * self.rows("to_time_hiddens.0.weights"),
            "cond_on_text": self.has("text_to_cond.weight"),
            "max_text_len": self.checkpoint.shape("null_text_embed")[1],
            "attn_pool_text": self.has("attn_pool.latents"),
        }
        if condition != self.dim or self.config.get("cond_dim") is not None:
            found["cond_dim"] = condition
        if found["cond_on_text"]:
            found["text_embed_dim"] = self.checkpoint.shape("text_to_cond.weight")[1]
        if found["attn_pool_text"]:
            found["attn_pool_num_latents"] = self.rows("attn_pool.latents")
        return found

    def _attention(self) -> dict[str, Any]:
        """Those in the middle have 8 heads of 64 channels in any case."""
        scales = [
            key for key in self.checkpoint.tensors if key.endswith(".q_scale") and not key.startswith("mid_block")
        ]
        found: dict[str, Any] = {"attend_at_middle": self.has("mid_attn.layers.0.0.null_kv")}
        if found["attend_at_middle"]:
            found["layer_mid_attns_depth"] = self.checkpoint.count("mid_attn.layers.")
        if scales:
            size = self.rows(scales[0])
            found["attn_dim_head"] = size
            found["attn_heads"] = self.rows(scales[0].replace("q_scale", "to_q.weight")) // size
        for level in range(self.levels):
            key = f"downs.{level}.3.layers.0.1.1.weight"
            if self.has(key):
                hidden, channels = self.checkpoint.shape(key)[:2]
                if int(channels * self.config.get("ff_mult", 0)) != hidden:  # else it is as given
                    found["ff_mult"] = hidden / channels
        return found

    def _levels(self) -> dict[str, Any]:
        levels = range(self.levels)
        return {
            "dim_mults": tuple(self.rows(f"ups.{n}.0.block1.project.weight") // self.dim for n in reversed(levels)),
            "num_resnet_blocks": tuple(self.checkpoint.count(f"downs.{n}.2.") for n in levels),
            "layer_attns": tuple(self.has(f"downs.{n}.3.layers.0.0.null_kv") for n in levels),
            "use_linear_attn": tuple(self.has(f"downs.{n}.3.layers.0.0.to_q.1.weight") for n in levels),
            "layer_attns_depth": tuple(max(1, self.checkpoint.count(f"downs.{n}.3.layers.")) for n in levels),
            "layer_cross_attns": tuple(self.has(f"downs.{n}.1.cross_attn.null_kv") for n in levels),
        }

    def _ends(self) -> dict[str, Any]:
        shape, config, dim = self.checkpoint.shape, self.config, self.dim
        embeds, efficient = self.has("init_conv.convs.0.weight"), self.has("init_resnet_block.block1.project.weight")
        final, combined = self.has("final_res_block.block1.project.weight"), self.checkpoint.count(_COMBINED)
        out_channels, last_inputs, kernel, _ = shape("final_conv.weight")
        channels = config.get("channels") or out_channels
        if self.low_res and final:
            channels = last_inputs - dim
        inputs = shape("final_res_block.block1.project.weight")[1] if final else last_inputs - self.low_res * channels
        convs = [f"init_conv.convs.{index}.weight" for index in range(self.checkpoint.count("init_conv.convs."))]
        stem = sum(map(self.rows, convs)) if embeds else self.rows("init_conv.weight")
        found: dict[str, Any] = {
            "memory_efficient": efficient,
            "init_cross_embed": embeds,
            "final_resnet_block": final,
            "final_conv_kernel_size": kernel,
            "combine_upsample_fmaps": combined > 0,
            "init_conv_to_final_conv_residual": inputs == dim * (2 + combined),
            "pixel_shuffle_upsample": any(self.has(f"ups.{n}.3.net.0.weight") for n in range(self.levels)),
            "channels": channels,
        }
        if embeds:
            sizes = tuple(shape(key)[2] for key in convs)
            same = sorted(config.get("init_cross_embed_kernel_sizes", ())) == list(sizes)
            found["init_cross_embed_kernel_sizes"] = config["init_cross_embed_kernel_sizes"] if same else sizes
        else:
            found["init_conv_kernel_size"] = shape("init_conv.weight")[2]
        if stem != dim or config.get("init_dim") is not None:
            found["init_dim"] = stem
        if out_channels != channels or config.get("channels_out") is not None:
            found["channels_out"] = out_channels
        blocks = ["init_resnet_block.", *(f"downs.{n}.2.0." for n in range(self.levels))]
        if any(self.has(f"{block}block1.project.weight") for block in blocks):
            found["use_global_context_attn"] = any(self.has(f"{block}gca.to_k.weight") for block in blocks)
        more = shape(convs[0] if embeds else "init_conv.weight")[1] - channels * (1 + self.low_res)
        itself = config.get("self_cond", more == channels and "cond_images_channels" not in config)
        return {**found, "self_cond": itself, "cond_images_channels": more - channels * itself}
