"""Calling a user's network: what it is given, and what it may return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import SamplingError, expect


def call_network(
    network: Callable[..., Any],
    name: str,
    x: Tensor,
    t: Tensor,
    conditions: Mapping[str, Any],
    shape: torch.Size,
    dtype: torch.dtype,
    where: Callable[[], str],
) -> Tensor:
    """network(x, t, **conditions), in `dtype`. name: of the network, where(): of the step, for messages.

    Raises SamplingError if it raises an exception, changes x, or returns another shape or a tensor elsewhere.
    """
    version = _version(x)
    try:
        out = network(x, t, **conditions)
    except Exception as error:
        given = ", ".join(f"{key} {_describe(value)}" for key, value in {"x": x, "t": t, **conditions}.items())
        raise SamplingError(
            f"{where()}: the {name} raised {type(error).__name__}: {error}; it was given {given}"
        ) from error
    if _version(x) != version:
        raise SamplingError(
            f"{where()}: the {name} changed its input x in place, which is the solver's state; let it work on a copy"
        )
    if not isinstance(out, Tensor):
        out = _tensor_in(out, where())
    if out.shape != shape:
        expected = "that of its input" if shape[1:] == x.shape[1:] else "the prediction's channels and the variance's"
        raise SamplingError(
            f"{where()}: the {name} returned shape {tuple(out.shape)}, expected {tuple(shape)}, {expected}"
        )
    if out.device != x.device:
        raise SamplingError(f"{where()}: the {name} returned a tensor on {out.device}, expected {x.device}")
    return out if out.dtype is dtype else out.to(dtype)


def _version(x: Tensor) -> int | None:
    """How often x was changed; None under torch.inference_mode(), where nobody counts."""
    return None if x.is_inference() else x._version


def join(cond: Mapping[str, Any], uncond: Mapping[str, Any], batch: int, inside: str = "") -> dict[str, Any]:
    """One set of conditions for a batch of 2B: the conditional half first. Mappings are joined key by key."""
    expect(
        cond.keys() == uncond.keys(),
        f"cond{inside} and uncond{inside} must have the same keys, got {sorted(cond)} and {sorted(uncond)}",
    )
    both: dict[str, Any] = {}
    for key, value in cond.items():
        other, name = uncond[key], f"{inside}[{key!r}]"
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            both[key] = join(value, other, batch, name)
        elif isinstance(value, Tensor) and isinstance(other, Tensor):
            expect(
                value.shape == other.shape and value.ndim > 0 and len(value) == batch,
                f"cond{name} and uncond{name} must be ({batch}, ...) and alike, "
                f"got {tuple(value.shape)} and {tuple(other.shape)}",
            )
            both[key] = torch.cat([value, other])
        else:
            same = value is other or (
                not isinstance(value, Tensor) and not isinstance(other, Tensor) and value == other
            )
            expect(same, f"cond{name} and uncond{name} must be equal, or both tensors, or both mappings")
            both[key] = value
    return both


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} on {value.device}"
    return type(value).__name__


def _tensor_in(out: Any, step: str) -> Tensor:
    """The tensor in what some models return: (tensor, ...) or an object with `.sample`, as diffusers' models do."""
    first = out[0] if isinstance(out, (tuple, list)) and out else getattr(out, "sample", None)
    if not isinstance(first, Tensor):
        raise SamplingError(f"{step}: the model returned {type(out).__name__}, expected a tensor")
    return first
