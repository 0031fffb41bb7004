"""Whether candidates agree: the project's rule of numerics (docs/numerics.md), on numbers made for the purpose."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

A = TypeVar("A")

ROUNDINGS = 8  # of sums, to float32, that the floor allows
_MEAN, _DEVIATION = 0.1, 0.5  # so small that sums of thousands of products fit a half


def tensors(value: Any) -> Iterator[Tensor]:
    """Those in a tensor, None, or a tuple or list of such."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors(each)


def mapped(function: Any, a: A) -> A:
    """Arguments with function(tensor) in place of each tensor."""

    def one(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        return [one(each) for each in value] if isinstance(value, list) else value

    return type(a)(*map(one, a))  # type: ignore[call-overload,arg-type]


def random_like(a: A) -> A:
    """The same arguments with other numbers: normal ones, in tensors of the same strides and alignment. A warm-up's
    zeros would hide a wrong kernel. The random generator in use is not touched; masks are as they are."""
    generators: dict[torch.device, torch.Generator] = {}

    def one(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        if x.device not in generators:
            generators[x.device] = torch.Generator(x.device).manual_seed(0)
        offset = x.data_ptr() % 16 // x.element_size()
        length = offset + 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride())) if x.numel() else 0
        storage = x.new_empty((length,)).normal_(_MEAN, _DEVIATION, generator=generators[x.device])
        return storage.as_strided(x.shape, x.stride(), offset)

    with torch.no_grad():
        return mapped(one, a)


def widened(a: A) -> A:
    """The arguments in float64. float32 would do for halves, if no setting could turn its products into tf32."""
    return mapped(lambda x: x.double() if x.is_floating_point() else x, a)


class Agreement(NamedTuple):
    """why: the results are not as good as torch's, or None. error, allowed: of the tensor that is the nearest to what
    is allowed; NaN where results cannot be compared."""

    why: str | None
    error: float = math.nan
    allowed: float = math.nan


def compared(ours: Any, theirs: Any, exact: Any) -> Agreement:
    """A candidate's results beside torch's own: its largest error against `exact` must be at most twice torch's, and
    the floor of docs/numerics.md; where torch's results are finite, its must be. `exact` None: against `theirs`, which
    may have as many roundings as the floor allows."""
    given = list(tensors(ours))
    wanted = list(tensors(theirs))
    oracles = wanted if exact is None else list(tensors(exact))
    if len(given) != len(wanted):
        return Agreement(f"it gives {len(given)} tensors, not {len(wanted)}")
    nearest: Agreement | None = None
    for x, y, z in zip(given, wanted, oracles, strict=True):
        if x.shape != y.shape or x.dtype != y.dtype:
            return Agreement(f"it gives {tuple(x.shape)} of {x.dtype}, not {tuple(y.shape)} of {y.dtype}")
        finite = torch.isfinite(y)
        if not bool((torch.isfinite(x) | ~finite).all()):
            return Agreement("it gives numbers that are not finite")
        z = z.double()
        error, allowed = (_largest(torch.where(finite, t.double() - z, 0)) for t in (x, y))
        largest = _largest(torch.where(finite, z, 0))
        summed_in = torch.promote_types(y.dtype, torch.float32)
        floor = largest * (torch.finfo(y.dtype).eps + ROUNDINGS * torch.finfo(summed_in).eps)
        bound = 2 * allowed + (ROUNDINGS * floor if exact is None else floor)
        if not error <= bound:
            return Agreement(f"its results are wrong: error {error:.1e}, allowed {bound:.1e}", error, bound)
        if nearest is None or error * nearest.allowed > nearest.error * bound:
            nearest = Agreement(None, error, bound)
    return nearest or Agreement(None, 0.0, 0.0)


def disagreement(ours: Any, theirs: Any, exact: Any) -> str | None:
    """Why a candidate's results are not as good as torch's own, or None."""
    return compared(ours, theirs, exact).why


def is_checkable(theirs: Any) -> bool:
    """Whether at least half of torch's results are finite, so that a check says something."""
    return all(bool(torch.isfinite(t).float().mean() >= 0.5) for t in tensors(theirs) if t.numel())


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0
