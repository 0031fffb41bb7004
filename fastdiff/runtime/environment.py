"""The environment variables of fastdiff: what each may hold, and one error for what it may not.

A variable that is empty counts as not set. What cannot be read is an error where it is used, in `fastdiff.optimize`,
and in every command: never a setting that is left out without a word, and never an error of `import fastdiff`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

from fastdiff.errors import expect

BACKENDS = ("auto", "reference", "cpu", "triton")
ISAS = ("amx", "avx512", "avx2", "neon", "baseline")
TUNE = ("0", "1", "all")
LARGEST = 1 << 40  # MiB, 2**60 bytes: more than any machine has, and less than what C++ can hold


def _flag(text: str) -> bool | None:
    return {"0": False, "1": True}.get(text)


def _mebibytes(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 13 and int(text) <= LARGEST else None


def _number(text: str) -> float | None:
    try:
        found = float(text) if text.isascii() and text == text.strip() and "_" not in text else math.nan
    except ValueError:
        return None
    return found if 0 <= found < math.inf else None


def _file(text: str) -> str | None:
    return text if text.strip() and not os.path.isdir(text) else None


def _one_of(names: tuple[str, ...]) -> Callable[[str], str | None]:
    return lambda text: text if text in names else None


# What reads it, giving None for what it cannot, and what is expected, in words.
VARIABLES: dict[str, tuple[Callable[[str], Any], str]] = {
    "FASTDIFF_BACKEND": (_one_of(BACKENDS), f"one of {', '.join(BACKENDS)}"),
    "FASTDIFF_ISA": (_one_of(ISAS), f"one of {', '.join(ISAS)}"),
    "FASTDIFF_EXACT": (_flag, "0 or 1"),
    "FASTDIFF_GRAPH": (_flag, "0 or 1"),
    "FASTDIFF_POOL_LIMIT": (_mebibytes, "a whole number of MiB, 0 or more"),
    "FASTDIFF_WEIGHT_BUDGET": (_number, "a number, 0 or more"),
    "FASTDIFF_MEASURE": (_flag, "0 or 1"),
    "FASTDIFF_TUNE": (_one_of(TUNE), "0, 1 or all"),
    "FASTDIFF_TUNE_FILE": (_file, "the path of a file"),
    "FASTDIFF_DEBUG": (_flag, "0 or 1"),
}


def read(name: str, default: Any = None) -> Any:
    """The value of a variable now, or the default where it is not set or empty. Raises ValueError if it is none."""
    text = os.environ.get(name)
    if not text:
        return default
    reader, expected = VARIABLES[name]
    found = reader(text)
    expect(found is not None, f"the environment variable {name} must be {expected}, got {text!r}")
    return found


def check() -> None:
    """Raises ValueError if a variable of fastdiff holds what it may not."""
    for name in VARIABLES:
        read(name)
