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
class ModelInfo:
    """What sampling needs to know of a trained model; `model.info` of what `load` returns.

    shape: of one sample, (C, H, W): pixels in [-1, 1], or the latents that `model.decode` makes pictures of. classes:
    names in the order of their numbers, empty for a model without. card: how it was trained and what came out, as in
    the model card. layer: a part of the model that has weights, by which conditions follow the model to another device.
    sampling: of a distilled model, None of one that is sampled as others are.
    """

    name: str
    shape: tuple[int, ...]
    schedule: Schedule
    prediction: str
    classes: tuple[str, ...]
    card: Mapping[str, Any]
    layer: nn.Module | None = field(default=None, kw_only=True, compare=False, repr=False)
    sampling: Sampling | None = field(default=None, kw_only=True)

    def condition(
        self, classes: str | Sequence[str | None] | None, batch: int, *, device: torch.device | str | None = None
    ) -> dict[str, Tensor]:
        """The `cond` of `fastdiff.sample` for a class, for one class a sample, or (None) for no class: {"y": (batch,)}
        int64. device: of the tensors; where the model is if None.

        Raises ValueError that lists the near names.
        """
        numbers = [self._number(name) for name in _one_each("classes", classes, batch)]
        return {"y": torch.tensor(numbers, dtype=torch.int64, device=self._place if device is None else device)}

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
        self, classes: str | Sequence[str | None] | None, batch: int, *, device: torch.device | str | None = None
    ) -> dict[str, Tensor]:
        """The `cond` of `fastdiff.sample` for a prompt, for one prompt a sample, or (None) for no prompt: {"context":
        (batch, length, width), "y": (batch, width)}, in the dtype of the model's encoder, which makes them. device: of
        the tensors; where the model is if None.

        Raises ValueError for unknown words, with the nearest known ones, and for too long a prompt.
        """
        with torch.no_grad():
            context, y = self.text(self.tokens(classes, batch))
        return {"context": context.to(device), "y": y.to(device)}  # None leaves them where they are

    def tokens(self, prompts: str | Sequence[str | None] | None, batch: int) -> Tensor:
        """(batch, length) int64, where the model is. `context, y = info.text(tokens)` is `condition` with gradients,
        for training the encoder or its embeddings. Raises as `condition` does."""
        words = [self.tokenizer.tokens(prompt) for prompt in _one_each("prompts", prompts, batch)]
        return torch.tensor(words, dtype=torch.int64, device=self.text.positions.device)


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
