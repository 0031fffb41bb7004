"""From what a user names to the `Subject`: a bundled model, a folder of a model, an entry point."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastdiff import arguments
from fastdiff.errors import expect, unknown
from fastdiff.models import bundled, load
from fastdiff.models.bundled.emoji_prompts import EMOJI_PROMPTS
from fastdiff.models.checkpoints import own
from fastdiff.models.info import ModelInfo, PromptInfo
from fastdiff.process.prediction import get_prediction
from fastdiff.profiling.diffusers_folder import load_folder
from fastdiff.profiling.features import emoji_extractor, entry_point
from fastdiff.profiling.subject import Subject, device_argument

# What the model cards' pictures are drawn with.
_GUIDANCE = {"emoji-unet-32": 2.0, "emoji-ldm-64": 3.0, "emoji-dit-64": 4.0}
GOLDEN = 0.6180339887498949  # its multiples fill [0, 1) evenly, however many there are


def get_subject(name: str | Subject | Callable[..., Any], *, device: torch.device | str | None = None) -> Subject:
    """A bundled model, a folder that `fastdiff.train` wrote or in diffusers' layout, or an entry point
    `module:function` (or `file.py:function`).

    device: where the model is to be, cpu, cuda or cuda:N; if None, where it is made, which is the CPU for all but entry
    points and Subjects. An entry point with an argument `device` is called with it.

    Raises ValueError that says what was looked for, or why the model cannot be on the device.
    """
    where = None if device is None else arguments.device("device", device)
    found = _subject(name, where)
    return found if where is None else found.to(where)


def _subject(name: str | Subject | Callable[..., Any], device: torch.device | None) -> Subject:
    if isinstance(name, Subject):
        return name
    if not isinstance(name, str):
        return _called(name, getattr(name, "__name__", "model"), _imported(name, device), device)
    if name in bundled.names():
        return _bundled(name, device)
    if own.written_here(Path(name)):
        return _trained(Path(name), device)
    if (Path(name) / "model_index.json").is_file() or (Path(name) / "config.json").is_file():
        return load_folder(Path(name), device=device)
    if ":" in name:
        return _called(entry_point(name, "model"), name, _found(name, device), device)
    expect(not Path(name).is_dir(), f"{name} is a folder without model_index.json or config.json of diffusers")
    raise unknown("model", name, (*bundled.names(), "a diffusers folder", "module:function", "file.py:function"))


def _called(function: Any, name: str, code: str, device: torch.device | None) -> Subject:
    expect(callable(function), f"model {name!r} must be a function that returns a fastdiff.profiling.Subject")
    made = function(device=device) if device is not None and takes_device(function) else function()
    if isinstance(made, Mapping):
        made = Subject(**{"name": name, **made})
    if not isinstance(made, Subject):
        raise TypeError(
            f"model {name!r} must return a profiling.Subject or a dict of its fields, got a {type(made).__name__}"
        )
    return made if made.code or made.bundled else replace(made, code=code)


def _found(name: str, device: torch.device | None) -> str:
    """The line of Python that makes the subject of a name; a file's is whole, so that it holds in other folders."""
    path, separator, function = name.rpartition(":")
    if path.endswith(".py"):
        name = f"{Path(path).resolve()}{separator}{function}"
    return f"from fastdiff.profiling import get_subject; subject = get_subject({name!r}{device_argument(device)})"


def _imported(function: Any, device: torch.device | None) -> str:
    """The line of Python that imports a function and makes its subject; empty for one that cannot be imported."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if not module or not name.isidentifier():
        return ""
    found = "" if module == "__main__" else f"from {module} import {name}; "  # there the name is at hand
    return f"from fastdiff.profiling import get_subject; {found}subject = get_subject({name}{device_argument(device)})"


def takes_device(function: Callable[..., Any]) -> bool:
    """Whether a function has an argument `device`."""
    try:
        return "device" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # of C, without a signature
        return False


def _bundled(name: str, device: torch.device | None) -> Subject:
    return subject_of(bundled.load(name, device=device or "cpu"))


def subject_of(model: bundled.BundledModel) -> Subject:
    """A bundled model that is loaded, its samples' classes in the shares of the data."""
    info, own = model.info, model.info.sampling
    expect(
        info.image is None,
        f"{info.name} is conditioned on a picture ({info.image}), which a profile does not have: give "
        "module:function or file.py:function that returns a Subject with its conditions",
    )
    prompts = EMOJI_PROMPTS if isinstance(info, PromptInfo) else ()
    shares = class_shares(len(info.classes)) if info.classes else []

    def conditions(first: int, count: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
        numbers = range(first, first + count)
        chosen = [prompts[i % len(prompts)] if prompts else info.classes[spread(i, shares)] for i in numbers]
        return info.condition(chosen, count), info.condition(None, count)

    return Subject(
        name=info.name,
        model=model,
        shape=info.shape,
        schedule=info.schedule,
        prediction=get_prediction(info.prediction),
        conditions=conditions if info.classes or prompts else None,
        decode=getattr(model, "decode", None),
        guidance=_GUIDANCE.get(info.name, 1.0),
        features="emoji",
        about={
            "parameters": info.card.get("parameters"),
            "classes": list(info.classes),
            "prompts": list(prompts),
            "data": info.card.get("data"),
        },
        bundled=True,
        teacher=None
        if own is None
        else replace(_bundled(own.teacher, next(model.parameters()).device), guidance=own.guidance),
        axes={} if own is None else {
            "solvers": [own.solver], "steps": sorted([own.steps, *own.other_steps]), "grids": [own.grid]
        },
    )  # fmt: skip


def _trained(folder: Path, device: torch.device | None) -> Subject:
    """A model that `fastdiff.train` wrote; samples have its classes in turn."""
    model: Any = load(folder, device=device or "cpu")
    info: ModelInfo | None = getattr(model, "info", None)
    expect(info is not None, f"{folder} does not say on which schedule its model was trained; give an entry point")
    assert info is not None

    def conditions(first: int, count: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
        chosen = [info.classes[i % len(info.classes)] for i in range(first, first + count)]
        return info.condition(chosen, count), info.condition(None, count)

    return Subject(
        name=folder.name,
        model=model,
        shape=info.shape,
        conditions=conditions if info.classes else None,
        guidance=2.0 if info.classes else 1.0,
        code="from fastdiff.profiling import get_subject; "
        f"subject = get_subject({str(folder.resolve())!r}{device_argument(device)})",
        about={"parameters": sum(p.numel() for p in model.parameters()), "classes": list(info.classes)},
    )


def class_shares(classes: int) -> list[float]:
    """Of the classes in the emoji data; equal ones for another number of classes."""
    shares = emoji_extractor().class_shares or ()
    return list(shares) if len(shares) == classes else [1 / classes] * classes


def spread(sample: int, shares: list[float]) -> int:
    """The class of sample k, such that the first n samples have the classes in about these shares for every n."""
    point = (0.5 + sample * GOLDEN) % 1.0
    total = 0.0
    for number, share in enumerate(shares):
        total += share
        if point < total:
            return number
    return len(shares) - 1
