"""Tiles of the backward kernels, chosen by timing them at the first call of a shape as fastdiff.runtime.tuning does it
for the candidates of operators; the tables are all there is with FASTDIFF_TUNE=0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

from fastdiff.runtime import tuning
from fastdiff.runtime.candidates import Candidate
from fastdiff.runtime.device import properties

Choice = TypeVar("Choice", bound=NamedTuple)

_settled: dict[tuple[object, ...], Any] = {}


def enabled(device: torch.device) -> bool:
    """Whether tiles may be timed on a device."""
    return device.type == tuning.tuner.timer.device_type and tuning.setting() != "0"


def best(
    key: Sequence[object], choices: Sequence[Choice], run: Callable[[Choice], object], device: torch.device
) -> Choice:
    """The quickest choice that agrees with the first, which is the default. key: of what is run, besides device and
    versions."""
    whole = (device, *key)
    if whole in _settled:
        return _settled[whole]
    by_name = {name_of(choice): choice for choice in choices}
    candidates = [Candidate(name, _with(run, choice)) for name, choice in by_name.items()]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    text = " ".join(str(part).replace("torch.", "") for part in key)
    key_in_file = f"{name} {properties(device).exact} {tuning.versions()} {text}"
    found = tuning.tuner.decide(tuning.Problem(key_in_file, text, device, candidates, make=lambda: None))
    if found.settled:
        _settled[whole] = by_name[found.name]
    return by_name[found.name]


def name_of(choice: NamedTuple) -> str:
    """Of a candidate: the numbers of a choice."""
    return "x".join(str(int(number)) for number in choice)


def _with(run: Callable[[Choice], object], choice: Choice) -> Callable[[Any], object]:
    return lambda _: run(choice)
