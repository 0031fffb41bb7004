"""What an operator was given where it takes tensors: asked where a call has failed, so that others pay nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

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


def expect_tensors(a: Any, kinds: Sequence[str]) -> None:
    """Raise TypeError that names the first of the Arguments that is no tensor where one is expected.

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
