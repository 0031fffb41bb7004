"""A subject with other prompts or classes than its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.models.info import ModelInfo
from fastdiff.profiling.diffusers_folder import load_folder
from fastdiff.profiling.subject import Subject
from fastdiff.profiling.subjects import get_subject


def prompted(model: str, prompts: Sequence[str], *, device: torch.device | str | None = None) -> Subject:
    """The subject of a name (`get_subject`) whose sample k has prompts[k % len(prompts)], prompts or names of classes.

    model: bundled, written by `fastdiff.train`, or a diffusers folder that takes text. Raises ValueError for others,
    and for words and classes that the model does not know.
    """
    names = tuple(prompts)
    if (Path(model) / "model_index.json").is_file():
        subject = load_folder(Path(model), names, device=None if device is None else torch.device(device))
        expect("encoder_hidden_states" in subject.conditions_of(0, 1)[0], f"{model} takes no prompts")
        return subject
    expect(
        ":" not in model or Path(model).is_dir(),
        f"{model} has its conditions: prompts are for bundled models and folders",
    )
    subject = get_subject(model, device=device)
    info = getattr(subject.model, "info", None)
    if subject.conditions is None or not isinstance(info, ModelInfo):
        raise ValueError(f"{model} takes neither classes nor prompts")
    for name in dict.fromkeys(names):
        info.condition(name, 1)  # refuses those that it does not know

    def conditions(first: int, count: int) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        chosen = [names[number % len(names)] for number in range(first, first + count)]
        return info.condition(chosen, count), info.condition(None, count)

    return replace(subject, conditions=conditions)
