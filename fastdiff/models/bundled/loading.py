"""The models that come with the package: weights beside a JSON description, both checked when loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from fastdiff import arguments
from fastdiff.errors import WeightsError, unknown
from fastdiff.files import replacing
from fastdiff.models.autoencoder import AutoencoderConfig
from fastdiff.models.bundled.conditioned import ClassLatentDiffusion, PromptLatentDiffusion
from fastdiff.models.bundled.controlled import EdgeLatentDiffusion
from fastdiff.models.bundled.eight_bits import packed, unpacked
from fastdiff.models.bundled.upsampler import Upsampler, UpsamplerConfig
from fastdiff.models.controlnet import ControlNet, ControlNetConfig
from fastdiff.models.dit import DiTConfig
from fastdiff.models.info import ImageCondition, ModelInfo, PromptInfo, Sampling, first_layer
from fastdiff.models.ldm import LDMConfig
from fastdiff.models.parts.unfilled import unfilled
from fastdiff.models.text import TextConfig, Tokenizer
from fastdiff.models.unet import UNet, UNetConfig
from fastdiff.process.schedules import SCHEDULES

BundledModel: TypeAlias = UNet | Upsampler | PromptLatentDiffusion | ClassLatentDiffusion | EdgeLatentDiffusion


_T = TypeVar("_T")


def folder() -> Path:
    """Where the bundled weights are."""
    return Path(str(resources.files("fastdiff.models.bundled"))) / "weights"


def names() -> list[str]:
    """The bundled models."""
    return sorted(path.stem for path in folder().glob("*.json"))


def load(name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> BundledModel:
    """A bundled model, in eval mode; `model.info` tells its schedule, prediction, shape and classes.

    A model on latents has `decode(z)` -> pictures in [-1, 1] and `encode(x)`. One that is conditioned on pictures says
    of what kind in `model.info.image`.

    name: e.g. "emoji-unet-32". device, dtype: of the weights. Raises ValueError that lists the near names, and
    WeightsError that names the file if it is missing, truncated, or not the one that was published.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"name must be that of a bundled model, got {arguments.described(name)}; fastdiff.models.load reads a "
            "checkpoint or a folder"
        )
    if name not in names():
        if "/" in name or "\\" in name or Path(name).exists():
            raise ValueError(
                f"{name!r} is not the name of a bundled model, which are {', '.join(names())}; "
                "fastdiff.models.load reads a checkpoint or a folder"
            )
        raise unknown("model", name, names())
    return load_files(folder() / f"{name}.json", device=device, dtype=dtype)


def to_pictures(model: BundledModel, samples: Tensor) -> Tensor:
    """Samples of a bundled model as pictures (B, 3, H, W) in [-1, 1]: decoded, if they are latents."""
    if isinstance(model, (UNet, Upsampler)):
        return samples.clamp(-1, 1)
    with torch.no_grad():
        return model.decode(samples)


@torch.inference_mode(False)  # what is loaded inside it could not be differentiated through later
def load_files(
    description: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> BundledModel:
    """A model from NAME.json and the NAME.safetensors beside it, as `save_files` writes them."""
    from safetensors.torch import load as load_safetensors

    if torch.device(device).type == "cuda":
        arguments.device("device", device)  # one line, and before the weights are read, if there is none
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
    base = _base(about, description.parent) if "base" in about else None
    with unfilled():
        model = _build(about, base)
    own(model).load_state_dict(unpacked(load_safetensors(content)), assign=True)
    model.info = _info(about, model)
    model.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval().requires_grad_(False)


def own(model: nn.Module) -> nn.Module:
    """The part of a bundled model whose weights are in its file: all but the base of one that adds to another."""
    return model.net if isinstance(model, EdgeLatentDiffusion) else model


def _base(about: Mapping[str, Any], beside: Path) -> BundledModel:
    """The model that a description says it adds to: from its folder, or of the package. Raises WeightsError unless it
    has the weights with which the addition was trained."""
    name, digest = about["base"]["name"], about["base"]["sha256"]
    path = next((at / f"{name}.json" for at in (beside, folder()) if (at / f"{name}.json").is_file()), None)
    if path is None:
        raise WeightsError(f"{about['name']} adds to {name}, which is not in {beside} nor in the package")
    found = _read_description(path)["sha256"]
    if found != digest:
        raise WeightsError(f"{about['name']} adds to {name} with SHA-256 {digest}, {path} describes {found}")
    return load_files(path)


def _build(about: Mapping[str, Any], base: BundledModel | None) -> BundledModel:
    """The network of a description, without its weights, beside its base, which has them."""
    network = about["network"]
    kind = about.get("kind", "unet")
    if kind == "unet":
        return UNet(_config(UNetConfig, network))
    if kind == "upsampler":
        return Upsampler(_config(UpsamplerConfig, network))
    if kind == "control" and isinstance(base, PromptLatentDiffusion):
        return EdgeLatentDiffusion(base, ControlNet(_config(ControlNetConfig, network)))
    autoencoder, scale_factor = _config(AutoencoderConfig, network["autoencoder"]), network["scale_factor"]
    if kind == "dit":
        return ClassLatentDiffusion(_config(DiTConfig, network["unet"]), autoencoder, scale_factor)
    if kind == "ldm":
        unet, text = _config(LDMConfig, network["unet"]), _config(TextConfig, network["text"])
        return PromptLatentDiffusion(unet, text, autoencoder, scale_factor)
    raise WeightsError(f"{about['name']} is of an unknown kind {kind!r}")


def _config(config: type[_T], fields: Mapping[str, Any]) -> _T:
    """From JSON, which has lists for tuples."""
    return config(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


def _info(about: Mapping[str, Any], model: BundledModel) -> ModelInfo:
    facts: dict[str, Any] = {
        "name": about["name"],
        "shape": tuple(about["shape"]),
        "schedule": SCHEDULES[about["schedule"]](),
        "prediction": about["prediction"],
        "classes": tuple(about["classes"]),
        "card": about["training"],
        "sampling": _config(Sampling, about["sampling"]) if "sampling" in about else None,
        "sha256": about["sha256"],
        "layer": first_layer(model),
        "image": ImageCondition(**{**image, "shape": tuple(image["shape"])}) if (image := about.get("image")) else None,
    }
    if isinstance(model, PromptLatentDiffusion):
        tokenizer = Tokenizer(about["words"].split(" "), model.text.config.length)
        return PromptInfo(**facts, tokenizer=tokenizer, text=model.text)
    if isinstance(model, EdgeLatentDiffusion):
        known = model.base.info
        assert isinstance(known, PromptInfo)
        return PromptInfo(**facts, tokenizer=known.tokenizer, text=model.text)
    return ModelInfo(**facts)


def save_files(path: Path, about: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write path.safetensors, eight bits a weight, and path.json: `about` and the checksum of the weights."""
    from safetensors.torch import save

    content = save(packed(state))
    with replacing(path.with_suffix(".safetensors")) as temporary:
        temporary.write_bytes(content)
    with replacing(path.with_suffix(".json")) as temporary:
        text = json.dumps({**about, "sha256": hashlib.sha256(content).hexdigest()}, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _read_description(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise WeightsError(f"cannot read the description {path}: {reason}") from error
    missing = {"name", "shape", "schedule", "prediction", "classes", "network", "training", "sha256"} - about.keys()
    if missing:
        raise WeightsError(f"{path} lacks {', '.join(sorted(missing))}")
    return about
