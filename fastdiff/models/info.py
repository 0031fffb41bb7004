"""What is known of a trained model, and what follows from it for a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.arguments import described, network, whole
from fastdiff.errors import expect, unknown
from fastdiff.models.text import TextEncoder, Tokenizer
from fastdiff.process.prediction import Prediction, get_prediction
from fastdiff.process.schedules import Schedule, get_schedule


@dataclass(frozen=True)
class Sampling:
    """How a distilled model is sampled if nothing else is asked for.

    solver, grid: names. steps: their number; other_steps: further ones that the model was made for. teacher: the
    bundled model that it was distilled from; guidance: the scale that was distilled with it, so that none is needed.
    """

    solver: str
    grid: str
    steps: int
    other_steps: tuple[int, ...]
    teacher: str
    guidance: float


@dataclass(frozen=True)
class ImageCondition:
    """The picture that a model is conditioned on.

    argument: of the model's call. what: it shows, in words. shape: (C, H, W). low: the value of its darkest; the
    brightest is 1. needed: whether the model does nothing without.
    """

    argument: str
    what: str
    shape: tuple[int, ...]
    low: float
    needed: bool

    def __str__(self) -> str:
        return f"{self.what}, {self.shape} in [{self.low:g}, 1]"

    def of(self, image: Tensor, batch: int, device: torch.device) -> dict[str, Tensor]:
        """The image (C, H, W), or (1, C, H, W), or one a sample, as what the model is given. Raises TypeError for what
        is no tensor, ValueError for another shape."""
        if not isinstance(image, Tensor):
            raise TypeError(f"image must be a tensor, {self}, got {described(image)}")
        rows = image[None] if image.ndim == len(self.shape) else image
        expect(
            rows.shape[1:] == self.shape and len(rows) in (1, batch),
            f"image must be {self}, one or one a sample ({batch}), got {tuple(image.shape)}",
        )
        return {self.argument: rows.to(device).expand(batch, *self.shape)}


@dataclass(frozen=True)
class ModelInfo:
    """What sampling needs to know of a trained model; `model.info` of what `load` returns.

    shape: of one sample, (C, H, W): pixels in [-1, 1], or the latents that `model.decode` makes pictures of. classes:
    names in the order of their numbers, empty for a model without. card: how it was trained and what came out, as in
    the model card. layer: a part of the model that has weights, by which conditions follow the model to another device.
    sampling: of a distilled model, None of one that is sampled as others are.
    image: the picture that the model is conditioned on, None for a model without. sha256: of the file of its weights.
    """

    name: str
    shape: tuple[int, ...]
    schedule: Schedule
    prediction: str
    classes: tuple[str, ...]
    card: Mapping[str, Any]
    layer: nn.Module | None = field(default=None, kw_only=True, compare=False, repr=False)
    sampling: Sampling | None = field(default=None, kw_only=True)
    image: ImageCondition | None = field(default=None, kw_only=True)
    sha256: str = field(default="", kw_only=True)

    def condition(
        self,
        classes: str | Sequence[str | None] | None,
        batch: int,
        *,
        image: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, Tensor]:
        """The `cond` of `fastdiff.sample` for a class, for one class a sample, or (None) for no class: {"y": (batch,)}
        int64, which a model without classes does not have. image: what `self.image` describes, one for all samples or
        (batch, C, H, W). device: of the tensors; where the model is if None.

        Raises ValueError that lists the near names, and for an image that is missing, not taken or of another shape.
        """
        numbers = [self._number(name) for name in _one_each("classes", classes, batch)]
        place = self._place if device is None else torch.device(device)
        y = {"y": torch.tensor(numbers, dtype=torch.int64, device=place)} if self.classes else {}
        return {**y, **self._given(image, batch, place)}

    def _given(self, image: Tensor | None, batch: int, place: torch.device) -> dict[str, Tensor]:
        """What the model gets of the image."""
        if image is None:
            expect(self.image is None or not self.image.needed, f"{self.name} needs an image: {self.image}")
            return {}
        if self.image is None:
            raise ValueError(f"image was given, but {self.name} is not conditioned on pictures")
        return self.image.of(image, batch, place)

    @property
    def _place(self) -> torch.device:
        """Where the model is."""
        return torch.device("cpu") if self.layer is None else next(self.layer.parameters()).device

    def _number(self, name: str | None) -> int:
        if name is None:
            return len(self.classes)
        if name not in self.classes:
            raise unknown("class", name, self.classes)
        return self.classes.index(name)


@dataclass(frozen=True)
class PromptInfo(ModelInfo):
    """Of a model that is conditioned on prompts. tokenizer: knows the words; text: the model's encoder of them."""

    tokenizer: Tokenizer
    text: TextEncoder

    def condition(
        self,
        classes: str | Sequence[str | None] | None,
        batch: int,
        *,
        image: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, Tensor]:
        """The `cond` of `fastdiff.sample` for a prompt, for one prompt a sample, or (None) for no prompt: {"context":
        (batch, length, width), "y": (batch, width)}, in the dtype of the model's encoder, which makes them. image,
        device: as of `ModelInfo.condition`.

        Raises ValueError for unknown words, with the nearest known ones, for too long a prompt, and as `ModelInfo` for
        the image.
        """
        with torch.no_grad():
            context, y = self.text(self.tokens(classes, batch))
        place = context.device if device is None else torch.device(device)
        return {"context": context.to(place), "y": y.to(place), **self._given(image, batch, place)}

    def tokens(self, prompts: str | Sequence[str | None] | None, batch: int) -> Tensor:
        """(batch, length) int64, where the model is. `context, y = info.text(tokens)` is `condition` with gradients,
        for training the encoder or its embeddings. Raises as `condition` does."""
        words = [self.tokenizer.tokens(prompt) for prompt in _one_each("prompts", prompts, batch)]
        return torch.tensor(words, dtype=torch.int64, device=self.text.positions.device)


def first_layer(model: nn.Module) -> nn.Module:
    """The first part of a model that has weights of its own, for `ModelInfo.layer`."""
    return next(each for each in model.modules() if any(True for _ in each.parameters(recurse=False)))


def _one_each(what: str, given: str | Sequence[str | None] | None, batch: int) -> list[str | None]:
    batch = whole("batch", batch, 1)
    if given is not None and (isinstance(given, (bytes, Mapping)) or not isinstance(given, Iterable)):
        raise TypeError(f"{what} must be a name, a list of one a sample, or None, got {described(given)}")
    names = [given] * batch if given is None or isinstance(given, str) else list(given)
    for name in names:
        if name is not None and not isinstance(name, str):
            raise TypeError(f"{what} must be names or None, got {described(name)}")
    expect(len(names) == batch, f"{what} must be one, or one a sample ({batch}), got {len(names)}")
    return names


def resolve(
    model: Callable[..., Any], schedule: Schedule | str | None, prediction: Prediction | str | None
) -> tuple[Schedule, Prediction]:
    """The schedule and the prediction type, from the arguments or from what the model says of itself.

    Raises ValueError where neither has them, or for an unknown name.
    """
    network(model)
    info = getattr(model, "info", None)
    schedule = get_schedule(schedule if schedule is not None else getattr(info, "schedule", None))
    if prediction is None:
        prediction = getattr(info, "prediction", None)
        expect(prediction is not None, "prediction must be given: this model does not say what it predicts")
    return schedule, get_prediction(prediction)  # type: ignore[arg-type]


def sampling_of(model: Callable[..., Any]) -> Sampling | None:
    """How a distilled model says that it is sampled; None of others."""
    return getattr(getattr(model, "info", None), "sampling", None)
