"""What a call is given: the shapes that decide whether sizes become symbols, and the numbers among its arguments.

A number of Python or NumPy that chooses what runs (a layer to skip, a flag) is a constant of a capture. One that is
computed with, such as a time, changes at every call: it goes into the graph as a tensor, whose item() is the number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

Place = int | str  # of an argument: a position or a name
Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_LARGEST = 1 << 62  # of an integer that a tensor can hold


def shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The shapes of the tensors, each with its place, also those in lists and dictionaries."""
    found: list[Any] = []
    for place, each in enumerate(args):
        if isinstance(each, Tensor):
            found.append((place, each.shape))
        elif isinstance(each, (list, tuple, dict)):
            _inner(place, each, found)
    for name, each in kwargs.items():
        if isinstance(each, Tensor):
            found.append((name, each.shape))
        elif isinstance(each, (list, tuple, dict)):
            _inner(name, each, found)
    return tuple(found)


def _inner(place: Any, x: Any, found: list[Any]) -> None:
    for key, each in x.items() if isinstance(x, dict) else enumerate(x):
        if isinstance(each, Tensor):
            found.append(((place, key), each.shape))
        elif isinstance(each, (list, tuple, dict)):
            _inner((place, key), each, found)


def numbers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Place, int | float]]:
    """The arguments that are numbers of Python, but for flags and what a tensor cannot hold."""
    found: list[tuple[Place, int | float]] = [
        (place, each) for place, each in enumerate(args) if type(each) is float or type(each) is int
    ]
    found += [(name, each) for name, each in kwargs.items() if type(each) is float or type(each) is int]
    return [(place, each) for place, each in found if type(each) is float or abs(each) < _LARGEST] if found else found


def replaced(args: tuple[Any, ...], kwargs: dict[str, Any], new: dict[Place, Any]) -> Arguments:
    """The arguments with others at some places."""
    return (
        tuple(new.get(place, each) for place, each in enumerate(args)),
        {name: new.get(name, each) for name, each in kwargs.items()},
    )


def as_tensor(number: int | float) -> Tensor:
    """A number whose item() is the same number, of the same type."""
    return torch.tensor(number, dtype=torch.int64 if type(number) is int else torch.float64, device="cpu")


# ---- numbers of NumPy ------------------------------------------------------------------------------------------------


def has_numpy(x: Any) -> bool:
    """Whether numbers of NumPy are among the arguments, also in lists and dictionaries."""
    if isinstance(x, (list, tuple)):
        return any(map(has_numpy, x))
    if isinstance(x, dict):
        return any(map(has_numpy, x.values()))
    return isinstance(x, np.generic)


def converted(x: Any, convert: Callable[[np.generic], Any]) -> Any:
    """The arguments with each number of NumPy converted."""
    if isinstance(x, np.generic):
        return convert(x)
    if type(x) in (list, tuple, dict):
        pairs = x.items() if isinstance(x, dict) else enumerate(x)
        new = {key: converted(each, convert) for key, each in pairs}
        return new if isinstance(x, dict) else type(x)(new.values())
    return x


def _whole(x: np.generic) -> Any:
    return int(x) if isinstance(x, np.number) else x.item()


def _item(x: np.generic) -> Any:
    return x.item()


def conversion(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """How to make Python's numbers of NumPy's so that the function gives the same, to the bit; or None.

    A number of NumPy is not always an int or a float to `isinstance`: diffusers' networks make a whole number of a
    np.float32. The arguments themselves may hide that, as 999.0 does, so others beside them are tried too.
    """
    tried = [(args, kwargs), converted((args, kwargs), _beside)]
    expected = [_bits(function, *each) for each in tried]
    for convert in (_item, _whole):
        found = [_bits(function, *converted(each, convert)) for each in tried]
        if all(a is not None and b is not None and _equal(a, b) for a, b in zip(found, expected)):
            return convert
    return None


def _beside(x: np.generic) -> Any:
    """A number of the same type that is not whole, where the type has such."""
    if not isinstance(x, np.floating):
        return x
    part = type(x)(0.5)
    return x + part if x + part != x else type(x)(0.75)


def _bits(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        try:
            return list(_leaves(function(*args, **kwargs)))
        except (TypeError, ValueError, AttributeError, RuntimeError):  # it does not take such numbers
            return None


def _leaves(x: Any) -> Iterator[Any]:
    if isinstance(x, (list, tuple, dict)):
        for each in x.values() if isinstance(x, dict) else x:
            yield from _leaves(each)
    else:
        yield x


def _equal(found: list[Any], expected: list[Any]) -> bool:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.dtype is b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
        return type(a) is type(b) and bool(a == b)

    return len(found) == len(expected) and all(map(same, found, expected))
