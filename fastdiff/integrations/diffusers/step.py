"""A scheduler's step as weighted sums of tensors, and running it: one pass over memory in place of one an operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fastdiff.ops.linear_combine import Arguments, linear_combine
from fastdiff.runtime import choice
from fastdiff.runtime.dispatcher import is_trivial
from fastdiff.runtime.native import core


@dataclass(frozen=True)
class Sums:
    """Weighted sums of some tensors of a pool. places: of those; weights: as `linear_combine` takes them; work: the
    dtype to sum in; dtypes: of the results."""

    places: tuple[int, ...]
    weights: list[float]
    work: torch.dtype
    dtypes: tuple[torch.dtype, ...]
    fits: bool  # the C++ kernel
    same: bool  # results have the dtype of the work

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]], inputs: Sequence[torch.dtype], on_cpu: bool, results: Any) -> Sums:
        """rows: a weight for each tensor of the pool; inputs: their dtypes; results: the results' dtypes."""
        places = tuple(k for k in range(len(inputs)) if any(row[k] != 0 for row in rows)) or (0,)
        dtypes = {inputs[k] for k in places} | set(results)
        work = dtypes.pop()
        half = work not in (torch.float32, torch.float64)
        if dtypes or (half and on_cpu):  # on the CPU the kernel has no half precisions
            work = torch.float64 if torch.float64 in {work, *dtypes} else torch.float32
        fits = len(places) <= core.MAX_INPUTS and len(rows) <= core.MAX_OUTPUTS and work in linear_combine.types
        weights = [float(row[k]) for k in places for row in rows]
        return cls(places, weights, work, tuple(results), fits, {*results} == {work})

    def __call__(self, pool: Sequence[Tensor]) -> list[Tensor]:
        work = self.work
        inputs = [x if (x := pool[k]).dtype is work else x.to(work) for k in self.places]
        arguments = Arguments(inputs, self.weights, len(self.dtypes))
        if self.fits and inputs[0].is_cpu and choice.current() == "auto" and is_trivial(inputs):
            results = linear_combine.kernel(arguments)  # as `run` would, without asking again
        else:
            results = linear_combine.run(arguments)
        if self.same:
            return results  # type: ignore[no-any-return]
        return [y if y.dtype is dtype else y.to(dtype) for y, dtype in zip(results, self.dtypes)]


@dataclass(frozen=True)
class Draw:
    """Noise that the step draws. generator: whether from the generator that it is given."""

    dtype: torch.dtype | None
    generator: bool


@dataclass(frozen=True)
class Clip:
    """A weighted sum between two bounds, which the step goes on with."""

    sums: Sums
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Place:
    """Stands for a tensor of the pool in what a step returns and keeps."""

    number: int


@dataclass(frozen=True)
class Sizes:
    """Stands for the sample's height and width, or whatever follows its channels."""


@dataclass(frozen=True)
class Step:
    """What a step does in one state of its scheduler, on a pool that begins with sample, model output and the tensors
    that the scheduler keeps.

    events: each adds its result to the pool, in this order; so do sums. result: the class of what is returned, or
    tuple, and its fields, `Place`s or values. values: new ones of the scheduler's attributes; changes: likewise, of
    those that hold tensors of the pool.
    """

    events: tuple[Draw | Clip, ...]
    sums: Sums | None
    result: tuple[Any, dict[str, Any]]
    values: dict[str, Any]
    changes: dict[str, Any]

    def __call__(self, attributes: dict[str, Any], pool: list[Tensor], generator: Any) -> Any:
        """Change the attributes; returns what the scheduler's step returns."""
        for event in self.events:
            if isinstance(event, Clip):
                pool.append(event.sums(pool)[0].clamp_(event.low, event.high))
            else:
                source = generator if event.generator else None
                like = pool[0]
                pool.append(randn_tensor(like.shape, generator=source, device=like.device, dtype=event.dtype))
        if self.sums is not None:
            pool += self.sums(pool)
        attributes.update(self.values)
        for name, value in self.changes.items():
            attributes[name] = _filled(value, pool)
        kind, fields = self.result
        if kind is tuple:
            return tuple([_filled(value, pool) for value in fields.values()])
        return kind(**{name: _filled(value, pool) for name, value in fields.items()})


def _filled(value: Any, pool: list[Tensor]) -> Any:
    kind = type(value)
    if kind is Place:
        return pool[value.number]
    if kind is list or kind is tuple:
        return kind([_filled(each, pool) for each in value])
    return pool[0].shape[2:] if kind is Sizes else value
