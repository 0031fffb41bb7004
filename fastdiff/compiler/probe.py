"""Whether a function only computes with a number, or decides by it what to do.

The number is given as one that notes what is asked of it. Looking it up, comparing it for equality and writing it into
a text are decisions; sums and products of it are such numbers again. What is greater, and what C code does with the
value, such as indexing a list, is not noted: there a capture holds for the values that decide alike, and says so in its
guards. For the others Dynamo of PyTorch 2.13 has none: `1 in [n]` is False for any n that is a symbol.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import torch

from fastdiff.compiler.arguments import Place, replaced

_NOT_MODELS = (os.path.dirname(torch.__file__), __file__)  # whose types are not asked for
_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
_UNARY = ("__neg__", "__pos__", "__abs__", "__invert__", "__round__", "__floor__", "__ceil__", "__trunc__")
_DECISIONS = (
    "__eq__", "__ne__", "__hash__", "__int__", "__str__", "__repr__", "__format__", "__divmod__", "is_integer",
    "as_integer_ratio",
)  # fmt: skip


def computes_only(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], places: list[Place]
) -> tuple[bool, Any]:
    """Call the function with the numbers at these places watched.

    Returns whether it only computed with them, and what it gave.
    """
    decisions: list[str] = []
    watched = {
        place: _watched(each, decisions) for place, each in (*enumerate(args), *kwargs.items()) if place in places
    }
    with _codes() as codes:
        given, named = replaced(args, kwargs, watched)
        result = _plain(function(*given, **named))
    if any("type" in code.co_names for code in codes if not code.co_filename.startswith(_NOT_MODELS)):
        return False, function(*args, **kwargs)  # type(number) is the one thing that a watched number cannot imitate
    return not decisions, result


@contextmanager
def _codes() -> Iterator[set[CodeType]]:
    """The functions of Python that are called inside the block."""
    found: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            found.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(before)


class _Watched:
    """What both kinds of numbers share."""

    decisions: list[str]


class _Int(_Watched, int):
    pass


class _Float(_Watched, float):
    pass


def _watched(number: Any, decisions: list[str]) -> Any:
    """The number as one that notes decisions; anything else as it is."""
    if type(number) not in (int, float):
        return number
    new = (_Int if type(number) is int else _Float)(number)
    new.decisions = decisions
    return new


def _computing(plain: type, name: str) -> Callable[..., Any]:
    method = getattr(plain, name)

    def compute(self: Any, *others: Any) -> Any:
        return _watched(method(self, *others), self.decisions)

    return compute


def _deciding(plain: type, name: str) -> Callable[..., Any]:
    method = getattr(plain, name)

    def decide(self: Any, *others: Any) -> Any:
        self.decisions.append(name)
        return method(self, *others)

    return decide


def _fill(kind: type, plain: type) -> None:
    both = [f"__{side}{name}__" for name in _ARITHMETIC for side in ("", "r")]
    for names, make in (((*both, *_UNARY), _computing), (_DECISIONS, _deciding)):
        for name in names:
            if hasattr(plain, name):
                setattr(kind, name, make(plain, name))


_fill(_Int, int)
_fill(_Float, float)


def _plain(x: Any) -> Any:
    """A result without watched numbers in it."""
    if isinstance(x, _Watched):
        return int.__int__(x) if isinstance(x, int) else float.__float__(x)  # type: ignore[arg-type]
    if type(x) in (list, tuple):
        return type(x)(map(_plain, x))
    if type(x) is dict:
        return {key: _plain(each) for key, each in x.items()}
    return x
