"""Calling a user's network: what it is given, and what it may return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
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

    Raises SamplingError if it raises an exception, changes x, or returns another shape, whole or complex numbers, or a
    tensor elsewhere.
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
        try:
            out = tensor_in(out)
        except TypeError as error:
            raise SamplingError(f"{where()}: {error}") from None
    if out.shape != shape:
        expected = "that of its input" if shape[1:] == x.shape[1:] else "the prediction's channels and the variance's"
        raise SamplingError(
            f"{where()}: the {name} returned shape {tuple(out.shape)}, expected {tuple(shape)}, {expected}"
        )
    if out.device != x.device:
        raise SamplingError(f"{where()}: the {name} returned a tensor on {out.device}, expected {x.device}")
    if out.layout is not torch.strided:
        raise SamplingError(f"{where()}: the {name} returned a {out.layout} tensor, expected a dense one")
    if out.dtype is dtype:
        return out
    if not out.is_floating_point():
        raise SamplingError(f"{where()}: the {name} returned {out.dtype}, expected floating-point numbers")
    return out.to(dtype)


def _version(x: Tensor) -> int | None:
    """How often x was changed; None under torch.inference_mode(), where nobody counts."""
    return None if x.is_inference() else x._version


def join(cond: Mapping[str, Any], uncond: Mapping[str, Any], batch: int) -> dict[str, Any] | None:
    """One set of conditions for a batch of 2B: the conditional half first. Mappings are joined key by key.

    None where the halves do not fit into one batch, as prompts of different lengths: the network is then called for
    each. A tensor of one row is for all samples.
    """
    _check_pair(cond, uncond, batch)
    return None if _is_apart(cond, uncond) else _joined(cond, uncond, batch)


def _check_pair(cond: Mapping[str, Any], uncond: Mapping[str, Any], batch: int, inside: str = "") -> None:
    expect(
        cond.keys() == uncond.keys(),
        f"cond{inside} and uncond{inside} must have the same keys, got {sorted(cond)} and {sorted(uncond)}",
    )
    for key, value in cond.items():
        other, name = uncond[key], f"{inside}[{key!r}]"
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            _check_pair(value, other, batch, name)
        elif isinstance(value, Tensor) and isinstance(other, Tensor):
            expect(
                value.ndim == other.ndim > 0 and all(len(each) in (1, batch) for each in (value, other)),
                f"cond{name} and uncond{name} must be ({batch}, ...) and alike, "
                f"got {tuple(value.shape)} and {tuple(other.shape)}",
            )
        else:
            expect(
                _differ_in_kind(value, other) or _are_equal(value, other),
                f"cond{name} and uncond{name} must be equal, or both tensors, or both mappings",
            )


def _is_apart(cond: Mapping[str, Any], uncond: Mapping[str, Any]) -> bool:
    for key, value in cond.items():
        other = uncond[key]
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            if _is_apart(value, other):
                return True
        elif isinstance(value, Tensor) and isinstance(other, Tensor):
            if value.shape[1:] != other.shape[1:]:
                return True
        elif _differ_in_kind(value, other):
            return True
    return False


def _differ_in_kind(value: Any, other: Any) -> bool:
    """Of what is no pair of tensors: a tensor beside None (one half has no mask), or lists of tensors, of which nobody
    knows whether they are one each sample."""
    if isinstance(value, (list, tuple)) and isinstance(other, (list, tuple)) and value is not other:
        return any(isinstance(each, Tensor) for each in (*value, *other))
    return (value is None and isinstance(other, Tensor)) or (other is None and isinstance(value, Tensor))


def _are_equal(value: Any, other: Any) -> bool:
    if value is other:
        return True
    if isinstance(value, Tensor) or isinstance(other, Tensor):
        return False
    if isinstance(value, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(value, other)
    return bool(value == other)


def _joined(cond: Mapping[str, Any], uncond: Mapping[str, Any], batch: int) -> dict[str, Any]:
    both: dict[str, Any] = {}
    for key, value in cond.items():
        other = uncond[key]
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            both[key] = _joined(value, other, batch)
        elif isinstance(value, Tensor):
            both[key] = torch.cat([each.expand(batch, *each.shape[1:]) for each in (value, other)])
        else:
            both[key] = value
    return both


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} on {value.device}"
    return type(value).__name__


def tensor_in(out: Any) -> Tensor:
    """The tensor in what some models return: (tensor, ...) or an object with `.sample`, as diffusers' models do. Raises
    TypeError where there is none."""
    if isinstance(out, Tensor):
        return out
    first = out[0] if isinstance(out, (tuple, list)) and out else getattr(out, "sample", None)
    if not isinstance(first, Tensor):
        raise TypeError(f"the model returned {type(out).__name__}, expected a tensor")
    return first
