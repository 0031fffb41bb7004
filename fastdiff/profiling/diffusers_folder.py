"""A pipeline in diffusers' layout as a `Subject`: its network, its autoencoder, and what its scheduler says."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.process.schedules import RectifiedFlow, Schedule, VPDiscrete
from fastdiff.profiling.diffusers_conditions import Called, conditions_of, expect_usable
from fastdiff.profiling.subject import Subject, device_argument

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def load_folder(
    folder: Path, prompts: tuple[str, ...] = ("a photo",), *, device: torch.device | None = None
) -> Subject:
    """The subject of a folder with model_index.json, on the device, or the CPU if None.

    U-Nets without a condition or with classes, DiTs, and networks of a text: Stable Diffusion 1 to 3 and XL, PixArt,
    and U-Nets whose pipeline's `encode_prompt` gives two tensors. Raises ImportError without diffusers, and ValueError
    for a pipeline of another kind or with a part that would be left out.
    """
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise ImportError(
            f"a diffusers folder needs diffusers: pip install torch-fastdiff[diffusers] ({error})"
        ) from error
    index = folder / "model_index.json"
    expect(index.is_file(), f"{folder} has no model_index.json: give the folder of a whole pipeline")
    try:
        about = json.loads(index.read_text(encoding="utf-8"))
        missing = {name: None for name, part in about.items() if part == [None, None]}  # else they are asked for
        pipeline = DiffusionPipeline.from_pretrained(str(folder), local_files_only=True, **missing)
    except Exception as error:  # a folder that is damaged makes diffusers raise nearly anything
        raise ValueError(f"diffusers cannot load {folder}: {type(error).__name__}: {error}") from error
    if device is not None:
        pipeline.to(device)
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    kind = about.get("_class_name", "?")
    expect(network is not None, f"{folder} is a {kind}, which has no unet or transformer")
    assert network is not None
    vae = getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
    expect_usable(pipeline, kind, network, [vae])
    network.eval().requires_grad_(False)
    config = network.config
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    schedule, prediction = schedule_of(pipeline.scheduler)
    if config.out_channels == 2 * config.in_channels:
        prediction += "+variance"
    if vae is not None:
        vae.eval().requires_grad_(False)
    return Subject(
        name=folder.name,
        model=Called(network),
        shape=(config.in_channels, height, width),
        schedule=schedule,
        prediction=prediction,
        conditions=conditions_of(pipeline, kind, folder, about, prompts),
        decode=None if vae is None else _decoder(vae),
        encode=None if vae is None else _encoder(vae),
        guidance=_guidance(pipeline),
        code="from fastdiff.profiling import get_subject; "
        f"subject = get_subject({str(folder.resolve())!r}{device_argument(device)})",
        about={"pipeline": kind, "parameters": sum(p.numel() for p in network.parameters())},
    )


def _guidance(pipeline: Any) -> float:
    """The scale of a call that names none; 1 of a pipeline without text."""
    if getattr(pipeline, "tokenizer", None) is None:
        return 1.0
    default = inspect.signature(pipeline.__call__).parameters.get("guidance_scale")
    return 7.5 if default is None else float(default.default)


def schedule_of(scheduler: Any) -> tuple[Schedule, str]:
    """fastdiff's schedule and prediction type of a diffusers scheduler. Raises ValueError for other kinds."""
    config = scheduler.config
    name = type(scheduler).__name__
    if "FlowMatch" in name:  # the network is given the training step
        scale = float(config.get("num_train_timesteps", 1000))
        return RectifiedFlow(float(config.get("shift") or 1.0), time_scale=scale), "flow"
    distilled = name.startswith(("LCM", "TCD"))
    expect(not distilled, f"a network for {name} is distilled: fastdiff cannot tell its schedule from it")
    betas = getattr(scheduler, "betas", None)
    expect(betas is not None, f"{type(scheduler).__name__} has no betas: fastdiff cannot tell its schedule")
    assert betas is not None
    prediction = config.get("prediction_type", "epsilon")
    expect(prediction in PREDICTIONS, f"unknown prediction_type {prediction!r} of {type(scheduler).__name__}")
    return VPDiscrete(betas.double().numpy()), PREDICTIONS[prediction]


def _decoder(vae: Any) -> Callable[[Tensor], Tensor]:
    factor, offset = _scaling(vae)

    def decode(latents: Tensor) -> Tensor:
        return vae.decode(latents / factor.to(latents) + offset.to(latents), return_dict=False)[0]

    return decode


def _encoder(vae: Any) -> Callable[[Tensor], Tensor]:
    factor, offset = _scaling(vae)

    def encode(pictures: Tensor) -> Tensor:
        found = vae.encode(pictures)
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        return (latents - offset.to(latents)) * factor.to(latents)

    return encode


def _scaling(vae: Any) -> tuple[Tensor, Tensor]:
    """What latents are multiplied with, and what is taken off before, as the network has them: numbers or one a
    channel."""
    config = vae.config
    factor = torch.tensor(float(config.get("scaling_factor") or 1), device="cpu")
    mean, std = (config.get(f"latents_{name}") for name in ("mean", "std"))
    if mean is not None and std is not None:
        mean, std = (torch.tensor(each, dtype=torch.float32, device="cpu").view(1, -1, 1, 1) for each in (mean, std))
        return factor / std, mean
    return factor, torch.tensor(float(config.get("shift_factor") or 0), device="cpu")
