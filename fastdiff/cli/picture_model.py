"""A model as the commands that make pictures use it: bundled, in a diffusers folder, or a Subject of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff import pictures
from fastdiff.errors import expect
from fastdiff.guidance import CFG
from fastdiff.models import bundled
from fastdiff.models.bundled import BundledModel
from fastdiff.models.bundled.controlled import EdgeLatentDiffusion
from fastdiff.models.bundled.upsampler import Upsampler
from fastdiff.models.checkpoints.own import written_here
from fastdiff.models.info import ModelInfo, PromptInfo, Sampling
from fastdiff.models.unet import UNet
from fastdiff.process.prediction import Prediction
from fastdiff.process.schedules import Schedule
from fastdiff.profiling import get_subject
from fastdiff.profiling.prompted import prompted
from fastdiff.profiling.subject import Conditions

GUIDANCE = 2.0


@dataclass(frozen=True)
class PictureModel:
    """From conditions to samples, and between samples and pictures.

    shape: of one sample, (C, H, W). conditions: (first, count) -> (cond, uncond) of these samples. scale: of the
    guidance; guided: whether there is one. decode: from samples to pictures (B, 3, H, W), with gradients, which a bound
    on the values would stop. encode: back; None for a model that cannot. latent: whether samples are something else
    than pictures. sampling: of a distilled model.
    """

    name: str
    network: Callable[..., Any]
    shape: tuple[int, ...]
    schedule: Schedule
    prediction: Prediction | str
    conditions: Conditions
    scale: float
    guided: bool
    device: torch.device
    dtype: torch.dtype
    decode: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor] | None
    latent: bool
    sampling: Sampling | None = None

    def given(self, first: int, count: int) -> dict[str, Any]:
        """Arguments of `fastdiff.sample` and of `fastdiff.editing` for samples first to first + count - 1."""
        cond, uncond = self.conditions(first, count)
        return {
            "schedule": self.schedule,
            "prediction": self.prediction,
            "guidance": CFG(self.scale) if self.guided else None,
            "cond": cond,
            "uncond": uncond if self.guided else None,
        }

    def pictures(self, samples: Tensor) -> Tensor:
        """Samples as pictures (B, 3 or 1, H, W), float32, in [-1, 1]."""
        with torch.no_grad():
            return self.decode(samples).float().clamp(-1, 1)

    def samples(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] as the model samples them. Raises ValueError for a model that cannot."""
        expect(self.encode is not None, f"{self.name} cannot start from a picture: its Subject has no `encode`")
        assert self.encode is not None
        if not self.latent and self.shape[0] == 1:
            pictures = pictures.mean(1, keepdim=True)
        with torch.no_grad():
            return self.encode(pictures.to(self.device)).to(self.dtype)

    def size(self) -> tuple[int, int]:
        """(height, width) of its pictures."""
        height, width = self.pictures(torch.zeros(1, *self.shape, device=self.device, dtype=self.dtype)).shape[2:]
        return height, width


def is_subject(name: str) -> bool:
    """Whether a name is a folder or an entry point, and not a bundled model. Raises ValueError for no such folder."""
    known = name in bundled.names()
    found = not known and (":" in name or Path(name).is_dir())
    expect(
        known or found or "/" not in name,
        f"--model {name!r}: there is no such folder; bundled models are {', '.join(bundled.names())}",
    )
    return found


def of_bundled(
    model: BundledModel, names: Sequence[str | None], guidance: float | None, image: Tensor | None = None
) -> PictureModel:
    """names: the class or prompt of each sample, None for none. guidance: None for the default. image: as of
    `ModelInfo.condition`. Raises ValueError for unknown names, and a guidance without anything to guide to."""
    info, weight = model.info, next(model.parameters())
    image = None if image is None else image.to(weight)
    cond = info.condition(names, len(names), image=image)
    own = info.sampling  # then the teacher's guidance is in the model
    scale = CFG((GUIDANCE if own is None else 1.0) if guidance is None else guidance).single
    named = any(name is not None for name in names)
    if not named and guidance not in (None, 1):
        raise ValueError(f"--guidance {guidance:g} needs a condition to guide to: --class or --prompt")
    decode, encode = _pixels_and_back(model)

    def conditions(first: int, count: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
        return {key: value[first : first + count] for key, value in cond.items()}, info.condition(
            None, count, image=image
        )

    return PictureModel(
        info.name, model, info.shape, info.schedule, info.prediction, conditions, scale,
        named and (own is None or scale != 1), weight.device, weight.dtype, decode, encode,
        latent=not isinstance(model, (UNet, Upsampler)), sampling=own,
    )  # fmt: skip


def _pixels_and_back(model: BundledModel) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    if isinstance(model, (UNet, Upsampler)):
        return lambda x: x, lambda x: x
    latent, weight = model.base if isinstance(model, EdgeLatentDiffusion) else model, next(model.parameters())

    def decode(z: Tensor) -> Tensor:
        return latent.autoencoder.decode(z.to(weight) / latent.scale_factor)

    return decode, lambda x: latent.encode(x.to(weight))


def of_subject(
    name: str, prompts: Sequence[str] | None, guidance: float | None, device: torch.device | None, dtype: torch.dtype
) -> PictureModel:
    """name: of a folder or an entry point. prompts: of samples 0, 1, ..., again from the first after the last, prompts
    or classes; None for the conditions it has. device: None for where an entry point makes its model. Raises ValueError
    for what does not fit."""
    subject = get_subject(name, device=device) if prompts is None else prompted(name, prompts, device=device)
    subject.require_pictures()
    scale = subject.guidance if guidance is None else guidance
    expect(
        scale == 1 or subject.conditions_of(0, 1)[1] is not None,
        f"--guidance {scale:g} needs a model with a condition to leave out; give --guidance 1",
    )
    cast = None if dtype == torch.float32 else dtype  # float32: as it is
    decode, encode = subject.decode, subject.encode
    return PictureModel(
        name, subject.in_dtype(dtype), tuple(subject.shape), subject.schedule, subject.prediction,  # type: ignore[arg-type]
        lambda first, count: subject.conditions_of(first, count, cast), CFG(scale).single, scale != 1, subject.device,
        dtype, latent=decode is not None,
        decode=subject.pictures if decode is None else lambda z: decode(z.float().to(subject.device)),
        encode=(lambda x: x) if decode is None else encode,
    )  # fmt: skip


def condition_of(info: ModelInfo, class_name: str | None, prompt: str | None) -> str | None:
    """What the model is conditioned on: the class or the prompt, whichever it takes; None for neither."""
    expect(class_name is None or prompt is None, "give --class or --prompt, not both")
    if isinstance(info, PromptInfo):
        expect(class_name in (None, "none"), f"{info.name} has no classes, give --prompt in place of --class")
        return prompt
    if not info.classes:
        for option, value in (("--class", class_name), ("--prompt", prompt)):
            expect(value in (None, "none"), f"{option}: {info.name} takes neither classes nor prompts")
        return None
    expect(prompt is None, f"{info.name} takes no prompts, give --class: {', '.join(info.classes)}")
    return None if class_name == "none" else class_name


def words_of(name: str, class_name: str | None, prompt: str | None) -> tuple[str, ...] | None:
    """What a folder or an entry point is conditioned on; None for the conditions it has."""
    trained = written_here(Path(name))
    expect(class_name is None or trained, "--class is for bundled models and those that fastdiff train wrote")
    expect(prompt is None or not trained, f"{name} takes no prompts, give --class")
    chosen = prompt if class_name is None else class_name
    return None if chosen is None else (chosen,)


def lines_of(path: str) -> list[tuple[int, str]]:
    """(number, text) of the lines of a file that are not empty. Raises ValueError where there are none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from error
    found = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    expect(len(found) > 0, f"{path} holds no prompts; it needs one a line")
    return found


def image_of(info: ModelInfo, path: str | None) -> Tensor | None:
    """(C, H, W): the picture that a model is conditioned on; None for one that need not have it. Raises ValueError
    where it must, and for a picture that does not fit."""
    taken = info.image
    assert taken is not None
    channels, size = taken.shape[0], taken.shape[-1]
    if path is None:
        expect(not taken.needed, f"{info.name} needs --image: {taken.what}, {size}x{size} pixels")
        return None
    return pictures.load_lines(path, size) if channels == 1 else pictures.load_square(path, size)
