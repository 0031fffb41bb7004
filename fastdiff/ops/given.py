"""What an operator was given in place of what it takes: asked where a call has failed, so that others pay nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastdiff.arguments import described

# Arguments that the public signature has inside another.
_NAMES = {
    "skip": "the second x", "weight_2": "the second weight", "bias_2": "the second bias",
    "weight_3": "the third weight", "bias_3": "the third bias",
}  # fmt: skip


def several(name: str, given: Any) -> Sequence[Tensor]:
    """The tensors of an argument that is a tensor or several of them.

    Raises TypeError where it is neither, ValueError where there are none.
    """
    if isinstance(given, Tensor):
        return (given,)
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"{name} must be a tensor or several of them, got {type(given).__name__}")
    if not given:
        raise ValueError(f"{name} must be a tensor or several of them, got none")
    for place, each in enumerate(given):
        if not isinstance(each, Tensor):
            raise TypeError(f"{name}[{place}] must be a tensor, got {type(each).__name__}") from None
    return given


def expect_kinds(a: Any, kinds: Sequence[str]) -> None:
    """Raise TypeError that names the first of the Arguments that is not of its kind: a tensor, a number or a name.

    kinds: of the arguments' fields, as schemas name them.
    """
    for field, kind, value in zip(a._fields, kinds, a):
        name = _NAMES.get(field, field)
        if kind == "Tensor[]":
            if not isinstance(value, Tensor) and value:
                several(name, value)
        elif kind == "Tensor?":
            if value is not None and not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a tensor or None, got {type(value).__name__}") from None
        elif kind == "Tensor" and not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}") from None
        elif kind in _PLAIN and not (_PLAIN[kind][1](value) or (value is None and kind.endswith("?"))):
            raise TypeError(f"{name} must be {_PLAIN[kind][0]}, got {described(value)}") from None


def _is_whole(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, (bool, Tensor))


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not (isinstance(value, Tensor) and value.numel() != 1)


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


_PLAIN = {
    "int": ("a whole number", _is_whole), "float": ("a number", _is_number), "float?": ("a number or None", _is_number),
    "str": ("a name", _is_name), "str?": ("a name or None", _is_name),
}  # fmt: skip
