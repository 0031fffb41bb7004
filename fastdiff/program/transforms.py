"""What of a sampling run is not linear: functions of whole tensors that a Program applies between two sums.

A step function calls `model.apply(name, *tensors, **parameters)`; the parameters are numbers or strings, so that a
Program stays data.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastdiff.errors import expect

TRANSFORMS: dict[str, Callable[..., Tensor]] = {}


def transform(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Register a function of tensors (B, ...), with keyword-only parameters, under its name. It returns a new tensor of
    the same shape and dtype, finite where its inputs are, and treats every sample of the batch alone."""
    name = function.__name__
    expect(name not in TRANSFORMS, f"transform {name!r} is registered twice")
    TRANSFORMS[name] = function
    return function


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, ...), to combine with `like` (B, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
