"""Which of a model's arguments are numbers that it computes with, found out once for each."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

from fastdiff.compiler.arguments import Place, conversion
from fastdiff.compiler.probe import computes_only

_UNKNOWN: Any = object()


class Numbers:
    """What is known of the numbers among a function's arguments.

    A number is a constant until it changes while all shapes stay; one that changes with them is a size. Then the
    function is called once with it watched, and from there on it is a tensor if the function only computed with it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._first: dict[Any, int | float] = {}  # by shapes, place and type
        self._computed: dict[Any, bool] = {}
        self._conversions: dict[Any, Any] = {}
        self.notes: list[str] = []

    def changing(self, found: list[tuple[Place, int | float]], given: Any) -> tuple[tuple[Place, ...], list[Place]]:
        """Of numbers that came with the shapes `given`: the places of those that are tensors, and of those of
        which it is only known that they change."""
        tensors, asked = [], []
        for place, number in found:
            key = place, type(number)
            computed = self._computed.get(key)
            if computed:
                tensors.append(place)
            elif computed is None and not _same(self._first.setdefault((given, *key), number), number):
                asked.append(place)
        return tuple(tensors), asked

    def ask(self, args: tuple[Any, ...], kwargs: dict[str, Any], places: list[Place]) -> Any:
        """Call the function, and note whether it only computes with what is at these places."""
        given = dict((*enumerate(args), *kwargs.items()))
        keys = [(place, type(given[place])) for place in places]
        self._computed.update(dict.fromkeys(keys, False))  # where it raises an error
        only, result = computes_only(self._function, args, kwargs, places)
        self._computed.update(dict.fromkeys(keys, only))
        return result

    def are_constants(self, places: tuple[Place, ...]) -> None:
        """Take these for numbers that decide what runs."""
        self._computed.update({(place, kind): False for place in places for kind in (int, float)})

    def conversion(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """How to make numbers of Python of NumPy's; None where the result would be another."""
        key = _types((args, kwargs))
        found = self._conversions.get(key, _UNKNOWN)
        if found is _UNKNOWN:
            found = self._conversions[key] = conversion(self._function, args, kwargs)
            if found is None:
                note = (
                    "runs as it was written where it is given numbers of NumPy: it gives something else with "
                    "Python's, and PyTorch captures no others"
                )
                self.notes.append(note)
                warnings.warn(f"fastdiff: the model {note}", stacklevel=6)
        return found


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _types(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return tuple(map(_types, x))
    if isinstance(x, dict):
        return tuple((key, _types(each)) for key, each in x.items())
    return type(x)
