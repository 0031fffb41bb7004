"""State dicts of NVlabs/edm's networks, with their preconditioning or without. Its own pickles hold code, which is
never run: save `net.state_dict()` as safetensors where the code is trusted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastdiff.errors import unknown
from fastdiff.models.checkpoints.layout import REQUIRED, Checkpoint, Derived, Layout, register
from fastdiff.models.checkpoints.openai_unet import fields_of, flat
from fastdiff.models.edm import PRECONDITIONINGS, DhariwalConfig, DhariwalUNet, SongConfig, SongUNet

MODELS = {"SongUNet": (SongUNet, SongConfig), "DhariwalUNet": (DhariwalUNet, DhariwalConfig)}
_OPTIONS = {
    "EDMPrecond": {"sigma_data": 0.5},
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000},
    "VEPrecond": {},
    "iDDPMPrecond": {"C_1": 0.001, "C_2": 0.008, "M": 1000},
}
_INNER = {"norm1": "norm0", "conv1": "conv0", "scale_shift": "affine", "shift": "affine", "norm2": "norm1",
          "conv2": "conv1", "skip": "skip"}  # fmt: skip
_ATTENTION = ("norm", "qkv", "proj")  # our names, which follow the block in a layer of their own


class EDMFamily(Layout):
    """What the two layouts share; `prefix` is before the network's names."""

    name = "edm"
    prefix: ClassVar[str]

    def detect(self, checkpoint: Checkpoint) -> bool:
        keys = checkpoint.tensors.keys()
        return super().detect(checkpoint) and any(
            re.match(rf"{re.escape(self.prefix)}enc\.\d+x\d+_conv\.weight", key) for key in keys
        )

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        network = checkpoint.below(self.prefix)
        keys = network.tensors.keys()
        sizes = sorted({int(key.split(".")[1].split("x")[0]) for key in keys if key.startswith("enc.")}, reverse=True)
        size = max(sizes, default=0)
        width = network.shape("map_layer0.weight")[0]
        stem = network.shape(f"enc.{size}x{size}_conv.weight")
        song = "out_norm.weight" not in keys
        channels = [network.shape(f"enc.{n}x{n}_block0.conv1.weight")[0] for n in sizes]
        model_channels = stem[0] if song else network.shape("map_layer0.weight")[1]
        given = checkpoint.config.get("attn_resolutions")
        attention = tuple(n for n in sizes if f"enc.{n}x{n}_block0.qkv.weight" in keys)
        possible = {n for n, c in zip(sizes, channels) if song or c >= 64}  # a head of ADM has 64 channels
        found: dict[str, Any] = {
            "model_type": "SongUNet" if song else "DhariwalUNet",
            "img_resolution": size,
            "model_channels": model_channels,
            "channel_mult": tuple(c // model_channels for c in channels),
            "channel_mult_emb": width // model_channels,
            "num_blocks": sum(bool(re.fullmatch(rf"enc\.{size}x{size}_block\d+\.norm0\.weight", key)) for key in keys),
            "attn_resolutions": given if given is not None and set(given) & possible == set(attention) else attention,
            "label_dim": network.shape("map_label.weight")[1] if "map_label.weight" in keys else 0,
            "augment_dim": network.shape("map_augment.weight")[1] if "map_augment.weight" in keys else 0,
        }
        found |= self.outside(checkpoint, network, stem[1])
        if not song:
            return found
        aux = next((name for name in ("residual", "skip") if any(f"_aux_{name}." in key for key in keys)), "standard")
        heads = sum(key.endswith("_aux_conv.weight") for key in keys)
        found |= {
            "channel_mult_noise": network.shape("map_layer0.weight")[1] // model_channels,
            "embedding_type": "fourier" if "map_noise.freqs" in keys else "positional",
            "encoder_type": aux,
            "decoder_type": "skip" if heads > 1 else "standard",
        }
        if len(sizes) == 1:  # then nothing tells "skip" from "standard", and nothing differs
            found = {key: value for key, value in found.items() if key not in ("encoder_type", "decoder_type")}
        filters = [key for key in keys if key.endswith("resample_filter")]
        if filters:
            taps = network.tensors[filters[0]][0, 0].sum(0).tolist()
            known = checkpoint.config.get("resample_filter", ())
            whole = tuple(round(tap / min(taps, key=abs)) for tap in taps)
            same = len(known) == len(taps) and all(abs(a / sum(known) - b) < 1e-6 for a, b in zip(known, taps))
            found["resample_filter"] = known if same else whole
        return found

    def outside(self, checkpoint: Checkpoint, network: Checkpoint, in_channels: int) -> dict[str, Any]:
        """The fields that are not the network's own."""
        raise NotImplementedError

    def network(self, config: Mapping[str, Any], in_channels: int, out_channels: int) -> nn.Module:
        """Of the config's model_type."""
        if config["model_type"] not in MODELS:
            raise unknown("model_type", config["model_type"], MODELS)
        model, kind = MODELS[config["model_type"]]
        options = {field: config[field] for field in fields_of(kind) if config.get(field, REQUIRED) is not REQUIRED}
        return model(kind(**{**options, "in_channels": in_channels, "out_channels": out_channels}))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        if name == "u":
            return name
        key = _original(name.removeprefix("network."), config)
        if isinstance(key, Derived):
            return Derived(tuple(self.prefix + part for part in key.keys), key.make)
        return self.prefix + key

    def unused(self, key: str, config: Mapping[str, Any]) -> bool:
        return key.endswith(".resample_filter")  # a table made from the field of this name, which is compared


@register
class EDMLayout(EDMFamily):
    """The classes `EDMPrecond`, `VPPrecond`, `VEPrecond` and `iDDPMPrecond` (class_name) around a network."""

    about = "EDM's preconditioned SongUNet (DDPM++, NCSN++) and DhariwalUNet"
    fields: ClassVar = {
        **fields_of(SongConfig),
        "img_resolution": REQUIRED,
        "img_channels": REQUIRED,
        "in_channels": None,
        "out_channels": None,
        "class_name": "EDMPrecond",
        "model_type": "DhariwalUNet",
        "use_fp16": False,
        "sigma_min": None,
        "sigma_max": None,
        "epsilon_t": None,
        **{option: None for options in _OPTIONS.values() for option in options},
    }
    markers = ("model.map_layer0.weight", "model.map_layer1.weight")
    prefix = "model."

    def outside(self, checkpoint: Checkpoint, network: Checkpoint, in_channels: int) -> dict[str, Any]:
        found: dict[str, Any] = {"img_channels": in_channels}
        if "u" in checkpoint.tensors:
            given = checkpoint.config.get("class_name", "")
            found |= {"class_name": given if _short(given) == "iDDPMPrecond" else "iDDPMPrecond",
                      "M": len(checkpoint.tensors["u"]) - 1}  # fmt: skip
        return found

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        name = _short(config["class_name"])
        if name not in PRECONDITIONINGS:
            raise unknown("class_name", config["class_name"], PRECONDITIONINGS)
        channels = config["img_channels"]
        network = self.network(config, channels, channels * (2 if name == "iDDPMPrecond" else 1))
        options: dict[str, Any] = {
            option: default if config[option] is None else config[option] for option, default in _OPTIONS[name].items()
        }
        return PRECONDITIONINGS[name](network, **options)


@register
class EDMNetworkLayout(EDMFamily):
    """The classes `SongUNet` and `DhariwalUNet` alone."""

    about = "EDM's networks without preconditioning"
    fields: ClassVar = {**fields_of(SongConfig), "model_type": "SongUNet"}
    markers = ("map_layer0.weight", "map_layer1.weight")
    prefix = ""

    def outside(self, checkpoint: Checkpoint, network: Checkpoint, in_channels: int) -> dict[str, Any]:
        last = "out_conv.weight" if "out_conv.weight" in network.tensors else next(
            (key for key in network.tensors if key.endswith("_aux_conv.weight")), "out_conv.weight"
        )  # fmt: skip
        return {"in_channels": in_channels, "out_channels": network.shape(last)[0]}

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return self.network(config, config["in_channels"], config["out_channels"])


def _short(class_name: str) -> str:
    """EDM's options name classes with their module."""
    return class_name.rsplit(".", maxsplit=1)[-1]


def _original(name: str, config: Mapping[str, Any]) -> str | Derived:
    """The name in the original network of the tensor `name` of ours."""
    song = config["model_type"] == "SongUNet"
    size, levels, blocks = config["img_resolution"], len(config["channel_mult"]), config["num_blocks"]
    names = {
        "frequencies": "map_noise.freqs",
        "label_embedding": "map_label",
        "augment_embedding": "map_augment",
        "time_embedding.0": "map_layer0",
        "time_embedding.2": "map_layer1",
        "conv_in": f"enc.{size}x{size}_conv",
        "norm_out": f"dec.{size}x{size}_aux_norm" if song else "out_norm",
        "conv_out": f"dec.{size}x{size}_aux_conv" if song else "out_conv",
    }
    for level in range(levels - 1):  # the picture's way
        below = size >> (level + 1)
        names[f"from_picture.{level}"] = f"enc.{below}x{below}_aux_{config['encoder_type']}"
        names[f"from_picture.{level}.conv"] = f"enc.{below}x{below}_aux_{config['encoder_type']}"
        here = size >> (levels - 1 - level)
        names[f"to_picture.{level}.norm"] = f"dec.{here}x{here}_aux_norm"
        names[f"to_picture.{level}.conv"] = f"dec.{here}x{here}_aux_conv"
    head, _, kind = name.rpartition(".")
    if name in names:
        return names[name]
    if head in names:
        return f"{names[head]}.{kind}"
    place, *rest = name.split(".")
    stage = 0 if place == "middle" else int(rest.pop(0))
    layer, inner = int(rest[0]), rest[1]
    if place == "middle":
        last = size >> (levels - 1)
        block = f"dec.{last}x{last}_in{0 if layer == 0 or inner in _ATTENTION else 1}"
    elif place == "down":
        level, index = divmod(stage, blocks + 1)
        here = size >> level
        block = f"enc.{here}x{here}_block{index}"
        if index == blocks:
            block = f"enc.{here // 2}x{here // 2}_down"
    else:
        level, index = divmod(stage, blocks + 1)
        here = size >> (levels - 1 - level)
        block = f"dec.{here}x{here}_block{index}"
        if layer > 0 and inner not in _ATTENTION:
            block = f"dec.{here * 2}x{here * 2}_up"
    if inner not in _ATTENTION:
        return f"{block}.{_INNER[inner]}.{kind}"
    key = f"{block}.{'norm2' if inner == 'norm' else inner}.{kind}"
    if inner == "qkv":
        return Derived((key,), _qkv_last)
    return Derived((key,), flat) if inner == "proj" else key


def _qkv_last(weight: Tensor) -> Tensor:
    """Rows in the order head, channel, then q, k or v to q, k or v, then head and channel."""
    rows = flat(weight)
    return torch.stack([rows[start::3] for start in range(3)]).flatten(0, 1)
