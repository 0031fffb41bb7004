"""checkpoint.pt, the state of a run: written whole or not at all, read without running code from it."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch

from fastdiff.errors import WeightsError, expect
from fastdiff.files import replacing
from fastdiff.train.objective import Objective

# A run may be resumed with others of these.
FREE = ("name", "steps", "checkpoint_every", "validate_every")


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Raises OSError that names the file, also for a full disk."""
    with replacing(path) as temporary:
        try:
            torch.save(dict(state), temporary)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(errno.ENOSPC, str(error)) from error


def read(path: Path, keys: Iterable[str], device: torch.device) -> dict[str, Any]:
    """What `write` wrote. Raises WeightsError that names the file if it is something else, or only a part."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # damaged bytes make torch.load raise nearly anything
        raise WeightsError(
            f"{path} is damaged or no checkpoint ({type(error).__name__}); remove it to begin again"
        ) from error
    missing = set(keys) - (state.keys() if isinstance(state, dict) else set())
    if missing:
        raise WeightsError(f"{path} is no checkpoint of a run: it lacks {', '.join(sorted(missing))}")
    return state


def expect_same(path: Path, state: Mapping[str, Any], objective: Objective) -> None:
    """Raises ValueError that says what differs if the state is of a run with other settings or on other data."""
    wanted = settings(objective)
    later = {f.name: f.default for f in fields(objective.recipe) if f.default is not MISSING}  # what older runs lack
    found = _completed(state["recipe"], wanted, later)
    differ = [name for name in {**wanted, **found} if name not in FREE and found.get(name) != wanted.get(name)]
    said = "; ".join(f"{name} {found.get(name)!r}, not {wanted.get(name)!r}" for name in differ)
    expect(not differ, f"{path} was made with another recipe: {said}; give an empty folder, or the same settings")
    data, given = state["data"], objective.fingerprint
    expect(data == given, f"{path} was made with another data set: {data!r}, not {given!r}; give an empty folder")


def _completed(found: Mapping[str, Any], wanted: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run, and in them those of its teacher, with the defaults of what older runs lack."""
    both = {**{name: later[name] for name in wanted if name in later}, **found}
    for name, value in both.items():
        if isinstance(value, Mapping) and isinstance(wanted.get(name), Mapping):
            both[name] = _completed(value, wanted[name], later)
    return both


def settings(objective: Objective) -> dict[str, Any]:
    """What a run goes on with only."""
    return {**asdict(objective.recipe), **objective.settings}
