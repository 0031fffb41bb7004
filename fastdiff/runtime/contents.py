"""Whether a weight has changed since something was made of it.

PyTorch counts changes in place (`_version`), but not those through `.data`, which merges of LoRAs, averaged weights and
`Module.half` use. So a weight is known by which tensor it is, its version, which storage it has, address, dtype and
strides; by a sample with numbers of every row and column, compared at every use; and by sums over all of its memory,
compared in turns (`look`), all at once in `changed`. Of a weight on a GPU there is the sample alone, and a use does not
wait for it: `Watch` compares it beside the calls. See docs/notes/changes.md.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fastdiff.runtime import graphs
from fastdiff.runtime.dispatcher import is_memory, is_ordinary
from fastdiff.runtime.native import core

_ELSEWHERE = 64  # numbers compared of a weight that is not in this machine's memory

_numbers = itertools.count(1)


class Content:
    """What a weight held when this was made: replaced, never changed.

    number: no other content has it. derived: by name, what others made of the weight and keep with it. forgotten: what
    was made of it must not be read any more, by graphs neither.
    """

    def __init__(self, weight: Tensor, sampled: bool = True) -> None:
        self.number = next(_numbers)
        self.derived: dict[str, Any] = {}
        self.forgotten = False
        self._state = _state(weight)
        # A storage has the same object in Python all its life, and goes with it if no other weak reference is held.
        self._storage = weakref.ref(weight.untyped_storage())
        self._memory: Any = _memory(weight) if sampled and is_ordinary(weight) else None
        self._sample = _Sample(weight) if sampled and self._memory is None else None

    def holds(self, weight: Tensor) -> bool:
        """Whether the weight is in the state it was in, and, in this machine's memory, the sample the same."""
        if self.forgotten or not self._same_state(weight):
            return False
        return self._memory is None or bool(self._memory.same_sample(weight.data_ptr()))

    def differs(self, weight: Tensor) -> Tensor | None:
        """Whether the sample of a weight on a GPU differs, as a tensor there; None if it is known without."""
        if self._sample is None or not self._same_state(weight):
            return None
        return self._sample.differs(weight)

    def same(self, weight: Tensor, share: float) -> bool:
        """Whether this share of the memory, the next in turn, is as it was; True where that is not known."""
        if self._memory is None or not self._same_state(weight):
            return True
        return bool(self._memory.same(weight.data_ptr(), share, torch.get_num_threads()))

    def _same_state(self, weight: Tensor) -> bool:
        return self._storage() is weight.untyped_storage() and self._state == _state(weight)


class _Known:
    """Contents by weight, as long as the weight lives.

    Of a parameter as long as its storage lives, for `torch.utils.swap_tensors` refuses a tensor to which there is a
    weak reference.
    """

    def __init__(self) -> None:
        self._others: Any = WeakTensorKeyDictionary()
        self._storages: dict[int, tuple[weakref.ref[Any], dict[Hashable, tuple[int, Content]]]] = {}

    def get(self, weight: Tensor) -> Content | None:
        """What is known of a weight."""
        if not isinstance(weight, torch.nn.Parameter):
            return self._others.get(weight)  # type: ignore[no-any-return]
        kept = self._storages.get(weight.untyped_storage()._cdata)
        which, found = (None, None) if kept is None else kept[1].get(_place(weight), (None, None))
        return found if which == id(weight) else None

    def put(self, weight: Tensor, content: Content) -> None:
        """Know this of a weight."""
        if not isinstance(weight, torch.nn.Parameter):
            self._others[weight] = content
            return
        storage = weight.untyped_storage()
        number = storage._cdata
        if number not in self._storages:
            # The function must not hold the storage.
            gone = functools.partial(_drop, self._storages, number)
            self._storages[number] = weakref.ref(storage, gone), {}
        self._storages[number][1][_place(weight)] = id(weight), content

    def pop(self, weight: Tensor) -> Content | None:
        """Know nothing of a weight any more; what was known."""
        if not isinstance(weight, torch.nn.Parameter):
            return self._others.pop(weight, None)  # type: ignore[no-any-return]
        kept = self._storages.get(weight.untyped_storage()._cdata)
        return None if kept is None else kept[1].pop(_place(weight), (None, None))[1]


def _drop(storages: dict[int, Any], number: int, _: Any) -> None:
    storages.pop(number, None)


def _place(weight: Tensor) -> Hashable:
    """Where in its storage a weight lies, and how."""
    return weight.data_ptr(), weight.dtype, weight.shape, weight.stride()


_known = _Known()
_noted: ContextVar[list[tuple[Tensor, Content]] | None] = ContextVar("noted", default=None)
_inside: ContextVar[dict[Any, Any] | None] = ContextVar("inside", default=None)


def watchable(weight: Tensor) -> bool:
    """Whether changes of it can be seen: it has a version, and memory."""
    return not weight.is_inference() and weight.numel() > 0 and is_memory(weight)


def of(weight: Tensor) -> Content:
    """What is known of a watchable weight, made anew if it has changed.

    While a graph is captured nothing new is known for longer than the capture: what is made of it then is made again by
    every replay, in the graph's memory.
    """
    found: Content | None = _known.get(weight)
    if found is None or not found.holds(weight):
        if graphs.capturing():
            return Content(weight, sampled=False)
        found = Content(weight)
        _known.put(weight, found)
    noted = _noted.get()
    if noted is not None:
        noted.append((weight, found))
    return found


@contextmanager
def noted() -> Iterator[list[tuple[Tensor, Content]]]:
    """The weights of which something is asked for inside the block, with what is known of them."""
    found: list[tuple[Tensor, Content]] = []
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)


def may_read() -> bool:
    """Whether what is queued now may read what is kept of a weight: it is no graph, or one whose owner notes that, and
    drops the graph when the weight changes."""
    return not graphs.capturing() or _noted.get() is not None


@contextmanager
def inside() -> Iterator[None]:
    """In the block a graph is captured that shall see every change of a weight: see `made_inside`."""
    token = _inside.set({})
    try:
        yield
    finally:
        _inside.reset(token)


def made_inside() -> dict[Any, Any] | None:
    """What was made of weights in the graph that is captured now, if all of it shall be made there, once a replay;
    otherwise None."""
    return _inside.get()


def look(weights: list[Tensor], share: float) -> None:
    """Compare this share of the memory of each weight of which something is kept; forget what was made of those that
    differ."""
    for weight in weights:
        found = _known.get(weight)
        if found is not None and not found.same(weight, share):
            forget(weight)


def changed(weight: Tensor) -> bool:
    """Whether the weight differs, anywhere, from what something was made of; of one on a GPU, in the sample. Waits."""
    found = _known.get(weight)
    if found is None:
        return False
    differs = found.differs(weight)
    return not (found.holds(weight) and found.same(weight, 1.0)) or (differs is not None and bool(differs))


class Watch:
    """Compares the samples of weights on a GPU without waiting: an answer is looked at when the device has given it."""

    def __init__(self) -> None:
        self._asked: tuple[list[weakref.ref[Tensor]], Tensor, Any] | None = None

    def answered(self) -> None:
        """Forget what was made of weights that differed when it was last asked, if that is known by now."""
        if self._asked is None:
            return
        weights, differ, event = self._asked
        if event is not None and not event.query():
            return
        self._asked = None
        for reference, differs in zip(weights, differ.tolist()):
            weight = reference()
            if differs and weight is not None:
                forget(weight)

    def ask(self, weights: Sequence[Tensor]) -> None:
        """Queue the comparison of the weights of which something is kept, if none is under way."""
        if self._asked is not None:
            return
        known = [(weight, _known.get(weight)) for weight in weights]
        asked = [(weight, found.differs(weight)) for weight, found in known if found is not None]
        pairs = [(weight, differs) for weight, differs in asked if differs is not None]
        if not pairs or len({weight.device for weight, _ in pairs}) > 1:
            return
        on_device = torch.stack([differs for _, differs in pairs])
        event = None
        if on_device.is_cuda:
            host = torch.empty(on_device.shape, dtype=torch.bool, device="cpu", pin_memory=True)
            on_device = host.copy_(on_device, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(pairs[0][0].device))
        self._asked = [weakref.ref(weight) for weight, _ in pairs], on_device, event


def forget(weight: Tensor) -> None:
    """Drop what was made of a weight."""
    found: Content | None = _known.pop(weight)
    if found is not None:
        found.forgotten = True


def _state(weight: Tensor) -> Hashable:
    return weight._version, weight.data_ptr(), weight.dtype, weight.shape, weight.stride()


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

    def differs(self, weight: Tensor) -> Tensor:
        return (self._of(weight) != self._numbers).any()

    def _of(self, weight: Tensor) -> Tensor:
        flat = torch.as_strided(weight.detach(), (_span(weight),), (1,))
        return flat.index_select(0, self._places)
