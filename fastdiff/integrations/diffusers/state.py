"""The state of a scheduler as a key: what decides the weights of its next step."""

from __future__ import annotations

import itertools
from collections import Counter
from operator import is_, itemgetter
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.integrations.diffusers.measuring import PLAIN
from fastdiff.integrations.diffusers.step import Step

NAME = "_fastdiff_memory"  # of the attribute
_PLAIN = frozenset(PLAIN)
_LIMIT = 4096  # steps; a loop of 1,000 steps has as many


class Memory:
    """What was measured of a scheduler and of its copies. steps: by key, a `Step`, or why there is none. taken: how
    many steps were run by it; left: to diffusers, and why."""

    def __init__(self) -> None:
        self.steps: dict[Any, Step | str] = {}
        self.taken = 0
        self.left: Counter[str] = Counter()
        self.moving: set[str] = set()  # attributes that steps change
        self.still: _Still | None = None
        self._known: dict[int, tuple[Any, Any, int, Any]] = {}
        self._numbers: dict[Any, int] = {}
        self._unused = itertools.count()

    def __deepcopy__(self, memo: Any) -> Memory:
        return self

    def __reduce__(self) -> Any:
        return Memory, ()

    def learn(self, step: Step | str) -> None:
        """Which attributes steps change; makes room for the step too."""
        if len(self.steps) >= _LIMIT:
            self.steps.clear()
        if isinstance(step, Step):
            self.moving |= step.changes.keys() | step.values.keys()

    def number(self, content: Any) -> int:
        """The same for the same content, and never for another."""
        found = self._numbers.get(content)
        if found is None:
            if len(self._numbers) >= _LIMIT:
                self._numbers.clear()
                self._known.clear()
                self.steps.clear()
                self.still = None
            found = self._numbers[content] = next(self._unused)
        return found

    def token(self, value: Any) -> int | None:
        """A number for the content of a table or a configuration; None where that cannot be known."""
        return self._look(value)[2]

    def content(self, value: Any) -> Any:
        """(dtype, shape, bytes) of a tensor."""
        return self._look(value)[3]

    def _look(self, value: Any) -> tuple[Any, Any, Any, Any]:
        version = _version(value)
        known = self._known.get(id(value))
        if known is not None and known[0] is value and known[1] == version:
            return known
        content = _content(value)
        number = None if content is None else self.number(content)
        if len(self._known) >= 256:  # they hold on to the tensors
            self._known.clear()
        found = value, version, number, content
        self._known[id(value)] = found  # type: ignore[assignment]
        return found


class _Still:
    """The attributes that steps do not change, as one number. They are looked at again only if they were replaced, or
    a tensor or a NumPy array among them changed in place."""

    def __init__(self, attributes: dict[str, Any], memory: Memory) -> None:
        self.moving = [k for k, v in attributes.items() if k in memory.moving or type(v) in (list, tuple) or _large(v)]
        still = [name for name in attributes if name not in self.moving and name != NAME]
        self.count, self.changing = len(attributes), len(memory.moving)
        self.get = itemgetter(*still) if len(still) > 1 else lambda found: tuple(found[name] for name in still)
        self.values = self.get(attributes)
        self.tensors = [value for value in self.values if isinstance(value, Tensor)]
        self.versions = [_version(tensor) for tensor in self.tensors]
        self.plain = not any(tensor.is_inference() for tensor in self.tensors)
        self.arrays = [value for value in self.values if isinstance(value, np.ndarray)]
        self.contents = [array.tobytes() for array in self.arrays]
        key: list[Any] = [*attributes]
        self.known = all(_add(value, key, [], memory, None) for value in self.values)
        self.number = memory.number(tuple(key)) if self.known else None

    def holds(self, attributes: dict[str, Any], memory: Memory) -> bool:
        """Whether all is as it was."""
        if len(attributes) != self.count or len(memory.moving) != self.changing:
            return False
        try:
            same = all(map(is_, self.get(attributes), self.values))
        except KeyError:
            return False
        if self.arrays and [array.tobytes() for array in self.arrays] != self.contents:
            return False
        if same and self.plain:
            return [tensor._version for tensor in self.tensors] == self.versions
        return same and [_version(tensor) for tensor in self.tensors] == self.versions


def read(attributes: dict[str, Any], memory: Memory, sample: Tensor) -> tuple[list[Any], list[Tensor]] | None:
    """What decides the next step, and the tensors of the form of a sample that the scheduler keeps; None where they do
    not fit the sample, or where it keeps something unknown."""
    still = memory.still
    if still is None or not still.holds(attributes, memory):
        still = memory.still = _Still(attributes, memory)
    key: list[Any] = [still.number]
    kept: list[Tensor] = []
    for name in still.moving:
        value = attributes[name]
        if type(value) in _PLAIN:
            key.append(value)
        elif not _add(value, key, kept, memory, sample):
            return None
    return (key, kept) if still.known else None


def _large(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 1


def _add(value: Any, key: list[Any], kept: list[Tensor], memory: Memory, sample: Any) -> bool:
    """Put a value into the key, or among what is kept; whether that can be done."""
    kind = type(value)
    if kind in _PLAIN:
        key.append(value)
    elif kind is Tensor and value.dim() > 1:
        key.append(value.dtype)
        kept.append(value)
        return value.shape == sample.shape and value.device == sample.device
    elif kind is Tensor and value.dim() == 0 and value.is_cpu:
        key += value.dtype, value.item()
    elif kind in (list, tuple):
        key += kind, len(value)
        return all(_add(each, key, kept, memory, sample) for each in value)
    else:
        token = memory.token(value)
        key += kind, token
        return token is not None
    return True


def number(value: Any, memory: Memory, attributes: dict[str, Any]) -> tuple[Any, Any] | None:
    """(kind, value) of an argument that is a number, or a tensor of one, and hashable; None for others.

    attributes: of the scheduler. What is a part of its timesteps has its value without waiting for the GPU.
    """
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if kind is not Tensor:
        return (value.dtype.str, value.item()) if isinstance(value, np.generic) else None
    if value.dim() > 0 or value.requires_grad:
        return None
    if not value.is_cpu:
        found = part_of(attributes.get("timesteps"), value, memory)
        if found is not None:
            return value.dtype, found
    return value.dtype, value.item()


def part_of(table: Any, value: Tensor, memory: Memory) -> Any:
    """The number that is in `value`, if that is an element of the tensor `table`; None for others."""
    if type(table) is not Tensor or table.device != value.device or table.dtype is not value.dtype:
        return None
    size = table.element_size()
    place, rest = divmod(value.data_ptr() - table.data_ptr(), size)
    if rest or not 0 <= place < table.numel() or not table.is_contiguous():
        return None
    content = memory.content(table)[-1]
    return torch.frombuffer(bytearray(content), dtype=table.dtype, count=1, offset=place * size).item()


def argument(kind: Any, value: Any) -> Any:
    """What `number` made a key of, on the CPU."""
    if isinstance(kind, torch.dtype):
        return torch.tensor(value, dtype=kind, device="cpu")
    return np.dtype(kind).type(value) if isinstance(kind, str) else value


def _version(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value.tobytes() if isinstance(value, np.ndarray) else 0  # of which no changes are counted
    if not value.is_inference():
        return value._version
    return _content(value) if value.is_cpu else 0  # a GPU would have to be waited for


def _content(value: Any) -> Any:
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return value.dtype, tuple(value.shape), bytes(data.numpy())
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, np.generic):
        return value.dtype.str, value.item()
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, FunctionType) and value.__module__.startswith("diffusers."):
        return value
    if isinstance(value, dict):  # the configuration
        return tuple(sorted((str(name), repr(each)) for name, each in value.items()))
    return None
