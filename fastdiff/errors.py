"""One way to refuse bad input: name the argument, say what was given and what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SamplingError(RuntimeError):
    """The model or its output broke the sampling loop; the message names the step."""


class WeightsError(RuntimeError):
    """A weight file is missing, truncated or not the one that was published; the message names the file."""


class TrainingError(RuntimeError):
    """The loss, its gradient or the weights are no longer finite; the message names the step and what is kept."""


def expect(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def unknown(kind: str, name: object, known: Iterable[str], listed: str = "") -> ValueError:
    """A ValueError that names the nearest known names, e.g. unknown("solver", "dpmp-2m", SOLVERS); all if they are few.

    listed: where many are listed, e.g. "which `fastdiff solvers` lists".
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    known_names = (
        f"known: {', '.join(names)}" if len(names) <= 20 else f"there are {len(names)}{f', {listed}' if listed else ''}"
    )
    return ValueError(f"unknown {kind} {_short(name)}; {hint}{known_names}")


def one_of(kind: str, name: object, known: Iterable[str]) -> None:
    """Raise TypeError for what is no name, and `unknown` for a name that is not among the known ones."""
    if not isinstance(name, str):
        raise TypeError(f"{kind} must be a name, got {_short(name)} ({type(name).__name__})")
    if name not in known:
        raise unknown(kind, name, known)


def _short(value: object) -> str:
    """As Python writes it, in one line and cut."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:80] + "..."
