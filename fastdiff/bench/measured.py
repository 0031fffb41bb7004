"""Files of what a device was measured to take: cases of operators, with the time and the error of each candidate.

`fastdiff bench ops --device cuda --sweep` writes such a file, `python -m fastdiff.kernels.tables` makes the tables of
the choice on GPUs from them, and `benchmarks/roofline.py` shows them beside the limits. Those in benchmarks/measured/
are what the tables in the package are made from.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fastdiff.errors import expect
from fastdiff.files import replacing
from fastdiff.ops import OPS
from fastdiff.runtime.candidates import TORCH
from fastdiff.runtime.shape_classes import EDGES

FORMAT = 1
# Fields by what they hold, beside those that are checked apart.
_HEAD = {
    **dict.fromkeys(("device", "architecture", "date", "source"), str), "multiprocessors": int, "l2_bytes": int,
    "versions": dict, "ceilings": dict, "complete": bool,
}  # fmt: skip
_CASE = {"detail": str, "part": str, "graph": bool, "bytes": int, "flops": int, "failed": dict}
_SAID = {str: "text", int: "a whole number", bool: "true or false", dict: "names with values"}
KINDS = {"float16": "half", "bfloat16": "half", "float32": "single", "float64": "double"}


class Time(NamedTuple):
    """microseconds of a call; the largest error against float64, and what is allowed; None where it was not checked."""

    microseconds: float
    error: float | None = None
    allowed: float | None = None

    @property
    def fault(self) -> str | None:
        """Why no table may rely on it, or None."""
        if self.error is None or self.allowed is None:
            return "it was not checked"
        right = self.error <= self.allowed
        return None if right else f"its results are wrong: error {self.error:.1e}, allowed {self.allowed:.1e}"


@dataclass
class MeasuredCase:
    """op, shape, dtype, detail: as those of fastdiff.bench.cases.Case. part: "" for the operator; "dq" or "dkv" for one
    kernel of its gradients; otherwise what was measured, in words. graph: in a CUDA graph, so without launches.
    features: what tables ask for, None where no table is made of it. times: by candidate. failed: why one has none."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    detail: str = ""
    part: str = ""
    graph: bool = True
    bytes: int = 0
    flops: int = 0
    features: dict[str, int] | None = None
    times: dict[str, Time] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        words = (self.op, self.part, "x".join(map(str, self.shape)), self.dtype, self.detail)
        return " ".join(word for word in words if word)

    @property
    def kind(self) -> str:
        """Of its dtype: "half", "single" or "double"."""
        return KINDS[self.dtype]

    def usable(self) -> Iterator[tuple[str, float]]:
        """Candidates that were right, with their microseconds. PyTorch's own result is what others are held to."""
        for name, time in self.times.items():
            if name == TORCH or time.fault is None:
                yield name, time.microseconds


@dataclass
class Measured:
    """A file. architecture: the device's own, as sm_90; ceilings: bytes a second of a copy ("copy"), operations a
    second of a product of halves ("product"), seconds of an empty launch in a graph ("launch"), as far as measured.
    complete: nothing was left out when the time was over."""

    device: str
    architecture: str
    multiprocessors: int
    l2_bytes: int
    date: str
    source: str
    versions: dict[str, str] = field(default_factory=dict)
    ceilings: dict[str, float] = field(default_factory=dict)
    complete: bool = True
    cases: list[MeasuredCase] = field(default_factory=list)


def load(path: str | Path) -> Measured:
    """A file. Raises ValueError that names it and what is wrong with it, OSError if it cannot be read."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        expect(isinstance(found, dict) and found.pop("format", None) == FORMAT, f"it is not of format {FORMAT}")
        cases = [_case(given) for given in found.pop("cases")]
        made = Measured(**found, cases=cases)
        _check_types(made, _HEAD)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no measurements: {error}") from error
    return made


def save(path: str | Path, measured: Measured) -> None:
    """Write a file, whole or not at all; a candidate has a line."""
    head = {"format": FORMAT, **_fields(measured, "cases")}
    lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    cases = ",\n".join(_text(case) for case in measured.cases)
    with replacing(path) as temporary:
        temporary.write_text("{\n" + "\n".join(lines) + '\n "cases": [\n' + cases + "\n]}\n", encoding="utf-8")


def _case(given: Mapping[str, Any]) -> MeasuredCase:
    times = {name: Time(*numbers) for name, numbers in given["times"].items()}
    case = MeasuredCase(**{**given, "shape": tuple(given["shape"]), "times": times})
    expect(case.op in OPS, f"there is no op {case.op!r}")
    expect(case.dtype in KINDS, f"{case}: unknown dtype")
    _check_types(case, _CASE, f"{case}: ")
    if case.features is not None:
        needed = EDGES.get(case.op, {})
        there = isinstance(case.features, dict) and needed.keys() <= case.features.keys()
        right = there and all(type(value) is int and value >= 0 for value in case.features.values())
        names = f" of {', '.join(needed)}" if needed else ""
        expect(right, f"{case}: features are {case.features!r}, expected whole numbers{names}")
    for name, time in times.items():
        numbers = [number for number in time if number is not None]
        good = all(isinstance(number, (int, float)) and math.isfinite(number) and number >= 0 for number in numbers)
        expect(good and time.microseconds > 0, f"{case}: {name} has {list(time)}, expected microseconds and errors")
    return case


def _check_types(of: Any, kinds: Mapping[str, type], where: str = "") -> None:
    for name, kind in kinds.items():
        value = getattr(of, name)
        expect(type(value) is kind, f"{where}{name} is {value!r}, expected {_SAID[kind]}")


def _text(case: MeasuredCase) -> str:
    head = ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in _fields(case, "times").items())
    times = ",\n".join(f"   {json.dumps(name)}: {json.dumps(list(time))}" for name, time in case.times.items())
    return f"  {{{head}, " + '"times": {\n' + times + "\n  }}"


def _fields(of: Any, without: str) -> dict[str, Any]:
    names = [each.name for each in dataclasses.fields(of) if each.name != without]
    return {name: getattr(of, name) for name in names}
