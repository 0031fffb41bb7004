"""Checkpoints of lucidrains/denoising-diffusion-pytorch: `Unet`, `Unet1D`, and the `Unet` with classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, MissingKey, register, renamed
from fastdiff.models.checkpoints.openai_unet import fields_of, flat
from fastdiff.models.ddp import ClassUnet, ClassUnetConfig, Unet, Unet1D, Unet1DConfig, UnetConfig
from fastdiff.models.ddp.config import full_levels, per_level

# Ours to theirs.
_OUTER = (
    (r"stem\.", "init_conv."),
    (r"frequencies$", "time_mlp.0.weights"),
    (r"time_embedding\.0\.", "time_mlp.1."),
    (r"time_embedding\.2\.", "time_mlp.3."),
    (r"classes\.", "classes_emb."),
    (r"no_class$", "null_classes_emb"),
    (r"class_embedding\.", "classes_mlp."),
    (r"(down|up)\.(\d+)\.block1\.", r"\1s.\2.0."),
    (r"(down|up)\.(\d+)\.block2\.", r"\1s.\2.1."),
    (r"(down|up)\.(\d+)\.attention\.", r"\1s.\2.2."),
    (r"(down|up)\.(\d+)\.resample\.conv\.", r"\1s.\2.3.1."),
    (r"(down|up)\.(\d+)\.resample\.", r"\1s.\2.3."),
    (r"middle\.0\.", "mid_block1."),
    (r"middle\.1\.", "mid_attn."),
    (r"middle\.2\.", "mid_block2."),
    (r"final\.", "final_res_block."),
    (r"conv_out\.", "final_conv."),
)
_INNER = (
    (r"(.*)\.scale_shift\.", r"\1.mlp.1."),
    (r"(.*)\.conv([12])\.", r"\1.block\2.proj."),
    (r"(.*)\.norm([12])\.weight", r"\1.block\2.norm.g"),
    (r"(.*)\.skip\.", r"\1.res_conv."),
    (r"(.*)\.norm\.weight", r"\1.norm.g"),
    (r"(.*)\.norm_out\.weight", r"\1.to_out.1.g"),
    (r"(.*)\.memory$", r"\1.mem_kv"),
    (r"(.*)\.qkv\.", r"\1.to_qkv."),
)
_LEARNED = ("learned_sinusoidal_cond", "random_fourier_features")
_HEADS = 4  # the constructor's, whose middle has 128 channels in all
_INNER_CHANNELS = 128


class _DDPLayout(Layout):
    """What the three share.

    A network whose result has as many channels as its input is taken for one without self_condition; config must say
    so where it has learned_variance, too. The original's `Trainer` saves the process around the network, and beside it
    the average over training, which is taken.
    """

    name = "ddp"
    parts: ClassVar = {"ema": "ema_model.model.", "unet": "model."}

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        shape, config, fields = checkpoint.shape, checkpoint.config, self.fields
        dim = shape("time_mlp.3.weight")[0] // 4
        levels = checkpoint.count("downs.")
        ends = [f"downs.{level}.3." for level in range(levels)]
        widths = [shape(end + ("1.weight" if end + "1.weight" in checkpoint.tensors else "weight"))[0] for end in ends]
        first, inputs = shape("init_conv.weight")[:2]
        outputs = shape("final_conv.weight")[0]
        found: dict[str, Any] = {"dim": dim, "dim_mults": tuple(width // dim for width in widths)}
        if first != dim or config.get("init_dim") is not None:
            found["init_dim"] = first
        found |= _channels(inputs, outputs, config, conditions="self_condition" in fields)
        learned = "time_mlp.0.weights" in checkpoint.tensors
        if learned:
            found["learned_sinusoidal_dim"] = 2 * shape("time_mlp.0.weights")[0]
        if not learned or not any(config.get(field) for field in _LEARNED):
            found |= {"learned_sinusoidal_cond": learned}
        return {**found, **self.attention(checkpoint)}

    def attention(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The fields of attention; here of the middle alone, whose projection tells the product of both."""
        inner, config = checkpoint.shape("mid_attn.fn.fn.to_qkv.weight")[0] // 3, checkpoint.config
        if "attn_dim_head" in config:
            return {"attn_heads": inner // config["attn_dim_head"]}
        if "attn_heads" not in config and inner != _INNER_CHANNELS:
            raise MissingKey(f"the weights of {checkpoint.name} do not tell attn_heads; config must give it")
        return {"attn_dim_head": inner // config.get("attn_heads", _HEADS)}

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        theirs = renamed(renamed(name, _OUTER), _INNER)
        if re.match(r"(middle\.1|(down|up)\.\d+\.attention)\.", name):
            theirs = self.within_attention(theirs, linear=self.is_linear(name, config))
        if theirs.endswith(".g"):
            return Derived((theirs,), Tensor.flatten)
        if theirs.endswith((".to_qkv.weight", ".to_out.weight", ".to_out.0.weight")):
            return Derived((theirs,), flat)
        return theirs

    def is_linear(self, name: str, config: Mapping[str, Any]) -> bool:
        """Whether the attention of one of our tensors is linear."""
        return not name.startswith("middle.")

    def within_attention(self, key: str, *, linear: bool) -> str:
        """The key of a tensor of attention, which is in a residual and a norm."""
        head, inner = _split(key)
        inner = inner.replace("proj.", "to_out.0." if linear else "to_out.")
        return f"{head}fn.{inner}" if inner == "norm.g" else f"{head}fn.fn.{inner}"


@register
class DDPLayout(_DDPLayout):
    """The class `Unet` of denoising_diffusion_pytorch.py."""

    about = "the U-Net of denoising-diffusion-pytorch"
    fields: ClassVar = fields_of(UnetConfig)
    markers = ("init_conv.weight", "downs.0.0.block1.norm.g", "mid_attn.mem_kv", "final_res_block.mlp.1.weight")

    def attention(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Learned keys are by position where attention is not linear, and by channel where it is."""
        levels, config = checkpoint.count("downs."), checkpoint.config
        full = tuple(f"downs.{level}.2.to_out.weight" in checkpoint.tensors for level in range(levels))
        sizes = [checkpoint.shape(f"downs.{level}.2.mem_kv") for level in range(levels)]
        told: dict[str, Any] = {
            "full_attn": full,
            "attn_heads": tuple(size[1] for size in sizes),
            "attn_dim_head": tuple(size[3 if attends else 2] for size, attends in zip(sizes, full)),
        }
        for field, value in told.items():  # in the spelling that was given, where it means the same
            spread = full_levels if field == "full_attn" else per_level
            default = self.fields[field]
            if spread(config.get(field, default), levels) == value:
                told[field] = config.get(field, default)
        return told

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return Unet(UnetConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        place = super().original(name, config)
        if isinstance(place, Derived):
            return place
        halves = name.startswith("down.") and name.endswith(("resample.weight", "resample.bias"))
        if halves and int(name.split(".")[1]) < len(config["dim_mults"]) - 1:
            return Derived((place.replace(".3.", ".3.1."),), _unshuffled)
        return place

    def is_linear(self, name: str, config: Mapping[str, Any]) -> bool:
        if name.startswith("middle."):
            return False
        full = full_levels(config["full_attn"], len(config["dim_mults"]))
        return not (full if name.startswith("down.") else full[::-1])[int(name.split(".")[1])]

    def within_attention(self, key: str, *, linear: bool) -> str:
        return key.replace(".proj.", ".to_out.0." if linear else ".to_out.")


@register
class DDP1DLayout(_DDPLayout):
    """The class `Unet1D`."""

    about = "Unet1D of denoising-diffusion-pytorch"
    fields: ClassVar = fields_of(Unet1DConfig)
    markers = ("init_conv.weight", "downs.0.0.block1.norm.g", "mid_attn.fn.fn.to_qkv.weight",
               "final_res_block.mlp.1.weight")  # fmt: skip

    def detect(self, checkpoint: Checkpoint) -> bool:
        return super().detect(checkpoint) and checkpoint.tensors[self.markers[0]].ndim == 3

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return Unet1D(Unet1DConfig(**config))


@register
class DDPClassLayout(_DDPLayout):
    """The class `Unet` of classifier_free_guidance.py."""

    about = "the U-Net with classes of denoising-diffusion-pytorch"
    fields: ClassVar = fields_of(ClassUnetConfig)
    markers = (*DDP1DLayout.markers, "classes_emb.weight", "null_classes_emb")

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return {**super().infer(checkpoint), "num_classes": checkpoint.shape("classes_emb.weight")[0]}

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return ClassUnet(ClassUnetConfig(**config))


def _split(key: str) -> tuple[str, str]:
    """mid_attn.norm.g -> mid_attn., norm.g; downs.0.2.norm.g -> downs.0.2., norm.g."""
    parts = 1 if key.startswith("mid_attn.") else 3
    words = key.split(".")
    return ".".join(words[:parts]) + ".", ".".join(words[parts:])


def _channels(inputs: int, outputs: int, config: Mapping[str, Any], *, conditions: bool) -> dict[str, Any]:
    """channels, out_dim, learned_variance and self_condition, of the channels at both ends and what is given."""
    itself = conditions and config.get("self_condition", False)
    channels = config.get("channels", inputs // 2 if itself else inputs)
    if conditions and "self_condition" not in config and "channels" not in config:
        itself = inputs == 2 * outputs
        channels = inputs // 2 if itself else inputs
    elif conditions and "self_condition" not in config:
        itself = inputs == 2 * channels
    found: dict[str, Any] = {"channels": inputs // 2 if itself else inputs}
    if conditions:
        found["self_condition"] = itself
    if config.get("out_dim") is not None:
        return {**found, "out_dim": outputs}
    variance = config.get("learned_variance", outputs == 2 * channels)
    if outputs == channels * (1 + variance):
        return {**found, "learned_variance": variance}
    return {**found, "out_dim": outputs}


def _unshuffled(weight: Tensor) -> Tensor:
    """A 1 x 1 convolution after a pixel unshuffle as one of 2 x 2."""
    return weight.reshape(len(weight), -1, 2, 2) if weight.ndim > 1 else weight
