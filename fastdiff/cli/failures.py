"""What a command says of what went wrong: one line, with what was given and what was expected."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import typer

from fastdiff.errors import SamplingError, TrainingError, WeightsError

MAY_BE_EMPTY = ("--prompt",)  # an empty prompt is a prompt
MAY_REPEAT = ("--op", "--target", "--weight")  # they take several values

_EXPECTED = (ValueError, OSError, ImportError, NotImplementedError, SamplingError, TrainingError, WeightsError)

# click's errors of usage; typer has a click of its own in some versions.
_USAGE = next(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException")


def refuse_empty(arguments: Sequence[str]) -> None:
    """Raises ValueError for an argument without a character in it, as an unset variable of a shell gives."""
    for before, argument in zip(("", *arguments), arguments):
        option, equals, value = argument.partition("=") if argument.startswith("--") else (before, "=", argument)
        if equals and not value.strip() and option not in MAY_BE_EMPTY:
            what = f"{option} needs a value" if option.startswith("--") else "an argument is missing"
            raise ValueError(f"{what}, got {value!r}")


def refuse_twice(arguments: Sequence[str]) -> None:
    """Raises ValueError for an option that is there twice, of which only the last one would count."""
    seen: set[str] = set()
    for argument in arguments:
        if argument == "--":
            return
        option = argument.partition("=")[0]
        if option.startswith("--") and option not in MAY_REPEAT:
            if option in seen:
                raise ValueError(f"{option} was given twice, and takes one value")
            seen.add(option)


def one_line(error: Exception) -> str:
    """What a person needs to know of an error; of one that nobody foresaw also its type, and how to see its place."""
    if isinstance(error, _USAGE):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "fastdiff"
        text = f"{error.format_message().rstrip('.')}{_given(error)}; see {command} --help"  # type: ignore[attr-defined]
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    elif isinstance(error, _EXPECTED):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}{_place(error)} (FASTDIFF_DEBUG=1 shows where)"
    return " ".join(text.split())


def _place(error: Exception) -> str:
    """The last line of a program of the user's that an error went through."""
    ours = str(Path(__file__).parents[1])
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "site-packages" not in frame.filename and not frame.filename.startswith((ours, "<", sys.base_prefix)):
            return f", in {Path(frame.filename).name}, line {frame.lineno}"
    return ""


def _given(error: Exception) -> str:
    """What was given, which typer's message lacks where pydantic reads the value."""
    found = getattr(error.__cause__, "errors", None)
    return f", got {found()[0].get('input')!r}" if callable(found) else ""
