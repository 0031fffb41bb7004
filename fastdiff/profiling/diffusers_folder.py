"""A model in diffusers' layout as a `Subject`: pipelines of a U-Net or a DiT, with their scheduler's betas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.process.schedules import RectifiedFlow, Schedule, VPDiscrete
from fastdiff.profiling.subject import Subject, device_argument

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


class _Output(nn.Module):
    """A diffusers network with fastdiff's call: network(x, t, **cond) -> tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        return self.network(x, t, **conditions, return_dict=False)[0]


def load_folder(
    folder: Path, prompts: tuple[str, ...] = ("a photo",), *, device: torch.device | None = None
) -> Subject:
    """The subject of a folder with model_index.json, on the device, or the CPU if None.

    Unconditional U-Nets (DDPM, DDIM pipelines), class-conditional DiTs, and text-conditional latent models whose
    pipeline has `encode_prompt`. Raises ImportError without diffusers and ValueError for a pipeline of another kind.
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
        pipeline = DiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # a folder that is damaged makes diffusers raise nearly anything
        raise ValueError(f"diffusers cannot load {folder}: {type(error).__name__}: {error}") from error
    if device is not None:
        pipeline.to(device)
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name", "?")
    expect(network is not None, f"{folder} is a {kind}, which has no unet or transformer")
    assert network is not None
    network.eval().requires_grad_(False)
    config = network.config
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    schedule, prediction = schedule_of(pipeline.scheduler)
    if config.out_channels == 2 * config.in_channels:
        prediction += "+variance"
    vae = getattr(pipeline, "vae", None)
    if vae is not None:
        vae.eval().requires_grad_(False)
    return Subject(
        name=folder.name,
        model=_Output(network),
        shape=(config.in_channels, height, width),
        schedule=schedule,
        prediction=prediction,
        conditions=_conditions(pipeline, kind, prompts),
        decode=None if vae is None else _decoder(vae),
        encode=None if vae is None else _encoder(vae),
        guidance=1.0 if getattr(pipeline, "tokenizer", None) is None else 7.5,
        code="from fastdiff.profiling import get_subject; "
        f"subject = get_subject({str(folder.resolve())!r}{device_argument(device)})",
        about={"pipeline": kind, "parameters": sum(p.numel() for p in network.parameters())},
    )


def schedule_of(scheduler: Any) -> tuple[Schedule, str]:
    """fastdiff's schedule and prediction type of a diffusers scheduler. Raises ValueError for other kinds."""
    config = scheduler.config
    if "FlowMatch" in type(scheduler).__name__:
        return RectifiedFlow(float(config.get("shift", 1.0))), "flow"
    betas = getattr(scheduler, "betas", None)
    expect(betas is not None, f"{type(scheduler).__name__} has no betas: fastdiff cannot tell its schedule")
    assert betas is not None
    prediction = config.get("prediction_type", "epsilon")
    expect(prediction in PREDICTIONS, f"unknown prediction_type {prediction!r} of {type(scheduler).__name__}")
    return VPDiscrete(betas.double().numpy()), PREDICTIONS[prediction]


def _decoder(vae: Any) -> Callable[[Tensor], Tensor]:
    def decode(latents: Tensor) -> Tensor:
        return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]

    return decode


def _encoder(vae: Any) -> Callable[[Tensor], Tensor]:
    def encode(pictures: Tensor) -> Tensor:
        return vae.encode(pictures).latent_dist.mode() * vae.config.scaling_factor

    return encode


def _conditions(pipeline: Any, kind: str, prompts: tuple[str, ...]) -> Any:
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    classes = getattr(network.config, "num_embeds_ada_norm", None) or getattr(
        network.config, "num_class_embeds", None
    )  # fmt: skip
    if hasattr(pipeline, "encode_prompt"):
        with torch.no_grad():
            encoded = [
                pipeline.encode_prompt(p, pipeline.device, 1, do_classifier_free_guidance=True, negative_prompt="")[:2]
                for p in prompts
            ]

        def of_prompts(first: int, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
            chosen = [encoded[i % len(encoded)] for i in range(first, first + count)]
            given, empty = (torch.cat(part) for part in zip(*chosen))
            return {"encoder_hidden_states": given}, {"encoder_hidden_states": empty}

        return of_prompts
    if "DiT" in kind and classes:

        def of_classes(first: int, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
            given = torch.arange(first, first + count, device=network.device) * 377 % classes  # no factor with 1000
            return {"class_labels": given}, {"class_labels": torch.full_like(given, classes)}

        return of_classes
    expect(
        "UNet2DModel" in type(network).__name__,
        f"fastdiff profile knows no conditions of a {kind}; write an entry point module:function instead",
    )
    return None
