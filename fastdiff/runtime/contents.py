"""Whether a weight has changed since something was made of it.

PyTorch counts changes in place (`_version`), but not those through `.data`, which merges of LoRAs, averaged weights and
`Module.half` use. So a weight is known by which tensor it is, its version, which storage it has, address, dtype and
strides; by a sample with numbers of every row and column, compared at every use; and by sums over all of its memory,
compared in turns (`look`), all at once in `changed`. See docs/notes/changes.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary

from fastdiff.runtime.dispatcher import is_memory, is_ordinary
from fastdiff.runtime.native import core

_ELSEWHERE = 64  # numbers compared of a weight that is not in this machine's memory

_numbers = itertools.count(1)


class Content:
    """What a weight held when this was made: replaced, never changed.

    number: no other content has it. derived: by name, what others made of the weight and keep with it.
    """

    def __init__(self, weight: Tensor) -> None:
        self.number = next(_numbers)
        self.derived: dict[str, Any] = {}
        self._state = _state(weight)
        # With a weak reference to it no other storage has its number.
        self._storage = StorageWeakRef(weight.untyped_storage())
        self._memory: Any = _memory(weight) if is_ordinary(weight) else None
        self._sample = _Sample(weight) if self._memory is None else None

    def holds(self, weight: Tensor) -> bool:
        """Whether the weight is in the state it was in, and the sample the same."""
        if self._state != _state(weight):
            return False
        if self._sample is not None:
            return self._sample.same(weight)
        return bool(self._memory.same_sample(weight.data_ptr()))

    def same(self, weight: Tensor, share: float) -> bool:
        """Whether this share of the memory, the next in turn, is as it was; True where that is not known."""
        if self._memory is None or self._state != _state(weight):
            return True
        return bool(self._memory.same(weight.data_ptr(), share, torch.get_num_threads()))


_known: Any = WeakTensorKeyDictionary()


def watchable(weight: Tensor) -> bool:
    """Whether changes of it can be seen: it has a version, and memory."""
    return not weight.is_inference() and weight.numel() > 0 and is_memory(weight)


def of(weight: Tensor) -> Content:
    """What is known of a watchable weight, made anew if it has changed."""
    found = _known.get(weight)
    if found is None or not found.holds(weight):
        found = _known[weight] = Content(weight)
    return found


def look(weights: list[Tensor], share: float) -> None:
    """Compare this share of the memory of each weight of which something is kept; forget what was made of those that
    differ."""
    for weight in weights:
        found = _known.get(weight)
        if found is not None and not found.same(weight, share):
            forget(weight)


def changed(weight: Tensor) -> bool:
    """Whether the weight differs, anywhere, from what something was made of."""
    found = _known.get(weight)
    return found is not None and not (found.holds(weight) and found.same(weight, 1.0))


def forget(weight: Tensor) -> None:
    """Drop what was made of a weight."""
    _known.pop(weight, None)


def _state(weight: Tensor) -> Hashable:
    storage = weight.untyped_storage()._cdata
    return weight._version, storage, weight.data_ptr(), weight.dtype, weight.shape, weight.stride()


def _memory(weight: Tensor) -> Any:
    """core.Contents of all that lies between the first and the last number."""
    item = weight.element_size()
    shape, strides = list(weight.shape), list(weight.stride())
    return core.Contents(weight.data_ptr(), _span(weight) * item, shape, strides, item, torch.get_num_threads())


def _span(weight: Tensor) -> int:
    """Numbers from the first to the last."""
    return sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride())) + 1


class _Sample:
    """Of a weight in another device's memory: numbers of each row and column."""

    def __init__(self, weight: Tensor) -> None:
        each = rest = torch.arange(max([_ELSEWHERE, *weight.shape[:2]]), dtype=torch.int64, device="cpu")
        places = torch.zeros_like(each)
        for dim, (size, stride) in enumerate(zip(weight.shape, weight.stride())):
            places += (each if dim < 2 else rest) % size * stride
            rest = rest if dim < 2 else rest // size
        self._places = places.unique().to(weight.device)
        self._numbers = self._of(weight)

    def same(self, weight: Tensor) -> bool:
        return torch.equal(self._of(weight), self._numbers)

    def _of(self, weight: Tensor) -> Tensor:
        flat = torch.as_strided(weight.detach(), (_span(weight),), (1,))
        return flat.index_select(0, self._places)
