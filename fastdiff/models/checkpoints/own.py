"""Models that `fastdiff.train` wrote: a folder with config.json, which also says what sampling needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from fastdiff.errors import WeightsError, expect
from fastdiff.files import replacing
from fastdiff.models.checkpoints.layout import REQUIRED, Checkpoint, Layout, register
from fastdiff.models.dit import DiT, DiTConfig
from fastdiff.models.info import ModelInfo, first_layer
from fastdiff.models.unet import UNet, UNetConfig
from fastdiff.process.schedules import SCHEDULES, Schedule

WEIGHTS = "diffusion_pytorch_model.safetensors"  # where `load` looks first in a folder
_CONFIG = "config.json"


def _defaults(config: type[Any]) -> dict[str, Any]:
    return {field.name: REQUIRED if field.default is MISSING else field.default for field in fields(config)}


class _Own(Layout):
    """A class of fastdiff's, whose config.json holds its config and `_info`: name, shape, schedule, prediction,
    classes, card."""

    name = "fastdiff"

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return {}

    def original(self, name: str, config: Mapping[str, Any]) -> str:
        return name

    def inform(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        """See `Layout.inform`. Raises WeightsError for an `_info` that lacks something."""
        about = checkpoint.config.get("_info")
        if about is None:
            return
        try:
            model.info = ModelInfo(  # type: ignore[assignment]
                name=about["name"],
                shape=tuple(about["shape"]),
                schedule=SCHEDULES[about["schedule"]](),
                prediction=about["prediction"],
                classes=tuple(about["classes"]),
                card=about["card"],
                layer=first_layer(model),
            )
        except (KeyError, TypeError) as error:
            raise WeightsError(f"{checkpoint.name}: `_info` in {_CONFIG} is not as it was written: {error}") from error


@register
class UNetLayout(_Own):
    """`fastdiff.models.unet.UNet`."""

    about = "fastdiff's UNet, as `fastdiff train folder` writes it"
    class_name = "fastdiff.UNet"
    fields: ClassVar = _defaults(UNetConfig)
    markers = ("time_embedding.0.weight", "conv_in.weight", "norm_out.weight")

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return UNet(UNetConfig(**config))


@register
class DiTLayout(_Own):
    """`fastdiff.models.dit.DiT`."""

    about = "fastdiff's DiT, as `fastdiff.train` writes it"
    class_name = "fastdiff.DiT"
    fields: ClassVar = _defaults(DiTConfig)
    markers = ("patches.weight", "conditioning.0.classes.weight", "final.linear.weight")

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return DiT(DiTConfig(**config))


def write(
    folder: Path,
    network: nn.Module,
    state: Mapping[str, Tensor],
    *,
    name: str,
    shape: tuple[int, ...],
    schedule: Schedule,
    prediction: str,
    classes: tuple[str, ...],
    card: Mapping[str, Any],
) -> None:
    """Write a model's folder: the weights `state` of a network, each file whole or not at all.

    config.json is for a UNet or DiT alone; with other networks the weights are all there is, for `load_state_dict`.
    What sampling needs is in it if the schedule is one of `fastdiff.schedules.SCHEDULES`.
    """
    write_weights(folder / WEIGHTS, state)
    kind = {UNet: "fastdiff.UNet", DiT: "fastdiff.DiT"}.get(type(network))
    if kind is None:
        return
    config: dict[str, Any] = {"_class_name": kind, **asdict(network.config)}  # type: ignore[call-overload]
    known = [key for key, make in SCHEDULES.items() if make() == schedule]
    if known:
        about = {"name": name, "shape": shape, "schedule": known[0], "prediction": prediction, "classes": classes}
        config["_info"] = {**about, "card": dict(card)}
    with replacing(folder / _CONFIG) as path:
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """A state dict as safetensors. Raises ValueError for a dict without tensors."""
    from safetensors.torch import save_file

    expect(bool(state), "there are no weights to write")
    tensors = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def written_here(folder: Path) -> bool:
    """Whether a folder's config.json is one of these."""
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and str(config.get("_class_name", "")).startswith("fastdiff.")
