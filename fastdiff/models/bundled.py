"""The models that come with the package: weights in float16 beside a JSON description, both checked when loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import WeightsError, expect, unknown
from fastdiff.files import replacing
from fastdiff.models.unet import UNet, UNetConfig
from fastdiff.schedules import SCHEDULES, Schedule


@dataclass(frozen=True)
class ModelInfo:
    """What sampling needs to know of a trained model; `model.info` of what `load` returns.

    shape: of one sample, (C, H, W), values in [-1, 1]. classes: names in the order of their numbers, empty for an
    unconditional model. card: how it was trained and what came out, as in the model card.
    """

    name: str
    shape: tuple[int, ...]
    schedule: Schedule
    prediction: str
    classes: tuple[str, ...]
    card: Mapping[str, Any]

    def condition(self, classes: str | Sequence[str | None] | None, batch: int) -> dict[str, Tensor]:
        """The `cond` of `fastdiff.sample` for a class, for one class a sample, or (None) for no class: {"y": (batch,)}.

        Raises ValueError that lists the near names.
        """
        names = [classes] * batch if classes is None or isinstance(classes, str) else list(classes)
        expect(len(names) == batch, f"classes must be one name or one a sample ({batch}), got {len(names)}")
        return {"y": torch.tensor([self._number(name) for name in names])}

    def _number(self, name: str | None) -> int:
        if name is None:
            return len(self.classes)
        if name not in self.classes:
            raise unknown("class", name, self.classes)
        return self.classes.index(name)


_LINEAR = ("qkv.weight", "proj.weight")


def folder() -> Path:
    """Where the bundled weights are."""
    return Path(str(resources.files("fastdiff.models"))) / "weights"


def names() -> list[str]:
    """The bundled models."""
    return sorted(path.stem for path in folder().glob("*.json"))


def load(name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> UNet:
    """A bundled model, in eval mode; `model.info` tells its schedule, prediction, shape and classes.

    name: e.g. "emoji-unet-32". Raises ValueError that lists the near names, and WeightsError that names the file if it
    is missing, truncated, or not the one that was published.
    """
    if name not in names():
        raise unknown("model", name, names())
    return load_files(folder() / f"{name}.json", device=device, dtype=dtype)


def load_files(description: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> UNet:
    """A model from NAME.json and the NAME.safetensors beside it, as `save_files` writes them."""
    from safetensors.torch import load as load_safetensors

    about = _read_description(description)
    weights = description.with_suffix(".safetensors")
    try:
        content = weights.read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read the weights {weights}: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != about["sha256"]:
        raise WeightsError(
            f"{weights} is not the file that was published: {len(content)} bytes with SHA-256 {digest}, expected "
            f"{about['sha256']}; it was truncated or changed, install the package again"
        )
    network: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in about["network"].items()
    }
    model = UNet(UNetConfig(**network))
    state = load_safetensors(content)
    # weights published with attention's linear maps as 1 x 1 convolutions
    state = {
        key: value.squeeze((2, 3)) if key.endswith(_LINEAR) and value.ndim == 4 else value
        for key, value in state.items()
    }
    model.load_state_dict(state)
    model.info = ModelInfo(
        name=about["name"],
        shape=tuple(about["shape"]),
        schedule=SCHEDULES[about["schedule"]](),
        prediction=about["prediction"],
        classes=tuple(about["classes"]),
        card=about["training"],
    )
    model.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval().requires_grad_(False)


def save_files(path: Path, about: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write path.safetensors (float16) and path.json, which holds `about` and the checksum of the weights."""
    from safetensors.torch import save

    content = save({key: value.to("cpu", torch.float16).contiguous() for key, value in state.items()})
    with replacing(path.with_suffix(".safetensors")) as temporary:
        temporary.write_bytes(content)
    with replacing(path.with_suffix(".json")) as temporary:
        text = json.dumps({**about, "sha256": hashlib.sha256(content).hexdigest()}, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _read_description(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read the description {path}: {error}") from error
    missing = {"name", "shape", "schedule", "prediction", "classes", "network", "training", "sha256"} - about.keys()
    if missing:
        raise WeightsError(f"{path} lacks {', '.join(sorted(missing))}")
    return about
