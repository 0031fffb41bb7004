"""The memory of a stand-in for a CUDA graph: what was there before a capture, and what is the graph's own.

A graph keeps addresses and no tensors. So what was there before is held weakly: a replay that would read memory which
was freed, and is nobody's, is an error that names it. Memory that the capture gave up is filled
with NaN where it was given up, as other activations, or other graphs, would lie there.
"""

import gc
import itertools
import os
import sys
import weakref
from typing import NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves, tree_map

_STAND_IN = ("graph_memory.py", "graph_stand_in.py")
GARBAGE = 0xFF  # in each byte: NaN in every floating-point type, -1 in an integer


class Forbidden(RuntimeError):
    """As torch raises it: operation not permitted when stream is capturing."""


def storages():
    """Of all tensors that Python knows, by their number, which no other one gets while the reference lives."""
    found, kinds = {}, {}
    for each in gc.get_objects():
        kind = type(each)
        if kind not in kinds:
            kinds[kind] = issubclass(kind, torch.Tensor) and kind.__torch_dispatch__ is torch.Tensor.__torch_dispatch__
        if kinds[kind] and each.layout is torch.strided and each.device.type == "cpu":
            reference = StorageWeakRef(each.untyped_storage())
            found[reference.cdata] = reference
    return found


def _alive(reference):
    """The storage, or None if it is gone."""
    return torch.UntypedStorage._new_with_weak_ptr(reference.cdata)


def whole(storage):
    """All bytes."""
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))


class Before:
    """Memory that was there before the capture, at one address. what: for messages."""

    def __init__(self, reference, storage, what):
        self._reference, self.what = reference, what
        self._address, self._bytes = storage.data_ptr(), storage.nbytes()
        self.bytes = None  # as they were, if the capture wrote to them

    def storage(self):
        """What lies at the address: a graph does not care whose it is. Raises Forbidden if nothing does."""
        storage = _alive(self._reference)
        if storage is None or storage.data_ptr() != self._address:
            storage = next((s for s in map(_alive, storages().values()) if self._is_at(s)), None)
            if storage is None:
                raise Forbidden(f"a replay reads memory that was freed: {self.what}")
            self._reference = StorageWeakRef(storage)
        return storage

    def _is_at(self, storage):
        return storage is not None and storage.data_ptr() == self._address and storage.nbytes() >= self._bytes

    def keep(self):
        """Before the capture writes."""
        if self.bytes is None:
            self.bytes = whole(self.storage()).clone()

    def restore(self):
        """After the capture, which only records."""
        if self.bytes is not None and (storage := _alive(self._reference)) is not None:
            whole(storage).copy_(self.bytes)
        self.bytes = None


class Own:
    """Memory of the graph's pool. `given` is the same memory with a lifetime of its own, for who runs the capture."""

    def __init__(self, storage):
        self._storage, self.bytes = storage, whole(storage)
        self.given = storage
        if storage.nbytes():
            self.given = torch._C._from_dlpack(torch._C._to_dlpack(self.bytes)).untyped_storage()
        self.reference = StorageWeakRef(self.given)
        self.given_up = False  # and the tape knows

    def storage(self):
        return self._storage

    def spoil(self):
        """As if something else lay there."""
        self.bytes.fill_(GARBAGE)


class Place(NamedTuple):
    """A tensor in the place of one. original: the object, weakly, of which operators may know more than its numbers."""

    memory: "Before | Own"
    dtype: torch.dtype
    layout: tuple
    original: "weakref.ref | None" = None

    def tensor(self):
        storage = self.memory.storage()
        known = None if self.original is None else self.original()
        if known is not None and known.untyped_storage()._cdata == storage._cdata and _layout(known) == self.layout:
            return known
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.layout)


def _layout(tensor):
    return tensor.storage_offset(), tensor.shape, tensor.stride()


class Memory:
    """Of one graph."""

    def __init__(self):
        self._before = storages()
        self._places = {}  # by a storage's number: Before or Own
        self._own = []

    def place(self, tensor, what):
        """Raises Forbidden for memory that is neither of before nor made by an operator inside."""
        assert not tensor.is_neg()
        assert not tensor.is_conj()
        storage = tensor.untyped_storage()
        memory = self._places.get(storage._cdata)
        if memory is None:
            what = f"{what}, {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
            reference = self._before.get(storage._cdata)
            if reference is None:
                raise Forbidden(f"operation not permitted when stream is capturing: {what} lies outside of the pool")
            memory = self._places[storage._cdata] = Before(reference, storage, what)
        original = weakref.ref(tensor) if isinstance(memory, Before) else None
        return Place(memory, tensor.dtype, _layout(tensor), original)

    def at(self, address, what):
        """The memory of a kernel's pointer, which is there."""
        for reference in self._before.values():
            storage = _alive(reference)
            if storage is not None and storage.data_ptr() <= address < storage.data_ptr() + storage.nbytes():
                return self.place(whole(storage), what).memory
        raise Forbidden(f"{what} points to no tensor's memory")

    def owned(self, result):
        """The result with the graph's own memory where it is new, and the tensors of that."""
        new = {}
        for tensor in tree_leaves(result):
            number = tensor.untyped_storage()._cdata if torch.is_tensor(tensor) else None
            if number is not None and number not in self._before and number not in self._places and number not in new:
                own = new[number] = Own(tensor.untyped_storage())
                self._own.append(own)
                self._places[own.given._cdata] = own

        def given(tensor):
            if not torch.is_tensor(tensor) or (own := new.get(tensor.untyped_storage()._cdata)) is None:
                return tensor
            return torch.empty(0, dtype=tensor.dtype).set_(own.given, *_layout(tensor))

        given_result = tree_map(given, result)
        for own in new.values():
            own.given = None
        return given_result, bool(new)

    def given_up(self):
        """What the capture has let go since it was last asked."""
        found = [own for own in self._own if not own.given_up and own.reference.expired()]
        for own in found:
            own.given_up = True
        return found

    def results(self):
        """The bytes of what is still held by somebody."""
        return [own.bytes for own in self._own if not own.reference.expired()]

    def captured(self):
        """A capture computes nothing, and writes nothing."""
        for each in itertools.chain(self._own, self._places.values()):
            if isinstance(each, Own):
                each.spoil()
            else:
                each.restore()

    def replayed(self):
        """What nobody holds may be another graph's after a replay."""
        for own in self._own:
            if own.reference.expired():
                own.spoil()


def caller():
    """Who called an operator: the file and line nearest to it that is no torch's and no stand-in's."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if os.path.basename(name) not in _STAND_IN and f"{os.sep}torch{os.sep}" not in name:
            return f"{os.path.basename(name)}:{frame.f_lineno}"
        frame = frame.f_back
    return "nowhere"
