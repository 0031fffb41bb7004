"""An operator's reference in float64, rounded once: where squares of the input leave float32's range, which ends at
3.4e38, so that a kernel has no use of its own sums. Numbers beyond 1e19, infinities and NaN bring that about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops.op import Gradients, Op, Tensors
from fastdiff.ops.registration import differentiated
from fastdiff.runtime import choice

_WHY = "numbers are so large that their squares leave float32's range, and are computed again in float64"


def results_in_double(op: Op[Any], a: Any, centered: Callable[[Tensor], Tensor]) -> Any:
    """What the operator gives, contiguous as the reference gives it.

    centered: takes one number of each row or group away, which changes no norm, so that rows of one number give 0.
    """
    choice.note(op.name, _WHY)
    dtype = a[0].dtype
    with torch.no_grad():
        wide = type(a)(*map(_wide, a))
        found = op.reference(type(a)(centered(wide[0]), *wide[1:]))
        return found.to(dtype) if isinstance(found, Tensor) else tuple(each.to(dtype) for each in found)


def gradients_in_double(op: Op[Any], a: Any, of_results: Tensors) -> Gradients:
    """A gradient for each tensor of the arguments, None where that is None."""
    choice.note(op.name, _WHY)
    hints = [isinstance(each, Tensor) for each in a]
    found = differentiated(op.reference, type(a)(*map(_wide, a)), hints, list(map(_wide, of_results)), again=False)
    return [None if found[k] is None else found[k].to(a[k].dtype) for k in op.tensor_places]  # type: ignore[union-attr]


def _wide(value: Any) -> Any:
    return value.detach().double() if isinstance(value, Tensor) else value
