"""The memory of a CUDA graph that is no activation: what a call gives it, and what the call gets of it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastdiff.compiler.outside import Parts


@dataclass
class Buffers:
    """Of one CUDA graph. inputs: what it reads; results: what it writes. last: the kept tensors that were copied.

    weights: what it reads in place, with addresses, to know when it is stale.
    """

    inputs: list[Tensor]
    results: Any = None
    last: list[Any] = field(default_factory=list)
    weights: list[tuple[weakref.ref[Tensor], int]] = field(default_factory=list)


def load(buffers: Buffers, parts: Parts, given: list[Tensor], made: Sequence[Any]) -> None:
    """Copy what a call gives to where the graph reads it, but for kept tensors that are there."""
    targets, sources = buffers.inputs[: len(given)], given
    if made:
        others, last = iter(buffers.inputs[len(given) :]), buffers.last or [None] * len(made)
        sources = list(given)
        for place, x in enumerate(made):
            if isinstance(x, Tensor):
                target = next(others)
                if parts.kept[place] and last[place] is x:
                    continue
                targets.append(target)
                sources.append(x)
    if targets:
        torch._foreach_copy_([*map(_narrow, targets)], [*map(_narrow, sources)])
    buffers.last = [x if kept else None for x, kept in zip(made, parts.kept)]


def own(x: Tensor) -> Tensor | None:
    """Memory for a tensor like x; None where elements share memory otherwise than by expansion."""
    own = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    return None if torch._debug_has_internal_overlap(_narrow(own)) == 1 else own


def _narrow(x: Tensor) -> Tensor:
    """Without the repetitions of dimensions that were expanded."""
    if 0 in x.stride() and x.numel():
        for dim, (size, stride) in enumerate(zip(x.shape, x.stride())):
            x = x.narrow(dim, 0, 1) if size > 1 and stride == 0 else x
    return x


def tensors(results: Any) -> list[Tensor]:
    """Those among a graph's results."""
    found = results if isinstance(results, (tuple, list)) else [results]
    return [x for x in found if isinstance(x, Tensor)]


def copies(results: Any) -> Any:
    """The same in memory of the caller's, with the same strides."""
    if isinstance(results, Tensor):
        return _copy(results)
    known: dict[int, Tensor] = {}
    copied = [
        known.setdefault(id(x), _copy(x) if id(x) not in known else x) if isinstance(x, Tensor) else x for x in results
    ]
    return tuple(copied) if isinstance(results, tuple) else copied


def _copy(x: Tensor) -> Tensor:
    found = x.clone()  # with its strides, if its elements fill their memory
    if found.stride() == x.stride():
        return found
    span = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride())) + 1
    return x.as_strided((span,), (1,)).clone().as_strided(x.shape, x.stride())


def shared(buffers: Buffers, read: list[Tensor]) -> str | None:
    """Why copies cannot stand for the results: they are views of what is given, or in another's memory."""
    storages = {x.untyped_storage()._cdata for x in read if x.numel()}
    if any(x.untyped_storage()._cdata in storages for x in tensors(buffers.results)):
        return "launches: a result is a view of an input or a weight"
    return None
