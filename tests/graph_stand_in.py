"""In the place of a CUDA graph, on the CPU: a tape that forbids what a capture forbids, and breaks what it would break.

A capture runs the operators, as the tape needs their results; what they wrote is then taken back, since a real capture
computes nothing. Replays do the operators again, without Python's part of them. They keep no tensor alive but the
graph's own (tests/graph_memory.py).
"""

import contextlib
from typing import ClassVar
from unittest import mock

import pytest
import torch
from graph_memory import Forbidden, Memory, Place, caller
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from fastdiff.runtime import graphs

WAITING = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_dim"}
RANDOM = torch.Tag.nondeterministic_seeded
# What reads a tensor on the host, or waits, and is no operator.
READING = [(torch.Tensor, name) for name in ("tolist", "numpy", "cpu", "__array__")]
READING += [(torch.cuda, "synchronize"), (torch.cuda.Stream, "synchronize"), (torch.cuda.Stream, "query")]
READING += [(torch.cuda.Event, "synchronize"), (torch.cuda.Event, "query")]


class StandIn(TorchDispatchMode):
    """made: all that were captured, in this process. fail: raised after so many operators of a capture."""

    device_type = "cpu"
    made: ClassVar[list] = []
    fail: "tuple[int, BaseException] | None" = None
    active = 0

    def __init__(self, device):
        super().__init__()
        assert device.type == "cpu"
        self.entries, self.replays = [], 0

    @staticmethod
    def current():
        """The one that is capturing, or None."""
        mode = _get_current_dispatch_mode()
        return mode if isinstance(mode, StandIn) else None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name.partition("::")[2]
        if name in WAITING or RANDOM in function.tags or _counts(name, args):
            raise _forbidden(name)
        devices = {x.device.type for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)}
        if len(devices) > 1 or kwargs.get("device", torch.device("cpu")).type != "cpu":
            raise _forbidden(f"{name} to another device")
        self._spoil()
        leaves, form = tree_flatten((args, kwargs))
        places = [
            self.memory.place(x, f"input {number} of {function} at {caller()}") if torch.is_tensor(x) else x
            for number, x in enumerate(leaves)
        ]
        self._keep(function, args, kwargs)
        result, is_new = self.memory.owned(function(*args, **kwargs))
        made = [self.memory.place(x, "") if torch.is_tensor(x) else None for x in tree_leaves(result)] if is_new else []
        if is_new or function._schema.is_mutable:
            self.entries.append(lambda: _again(function, form, places, made))
        if StandIn.fail is not None and len(self.entries) >= StandIn.fail[0]:
            raise StandIn.fail[1]
        return result

    def note(self, again, tensors, addresses):
        """A launch that no operator makes: again(*tensors) launches it with tensors in the place of these. addresses:
        of memory that it reads or writes, by name."""
        self._spoil()
        places = [None if x is None else self.memory.place(x, f"tensor {k}") for k, x in enumerate(tensors)]
        read = [self.memory.at(address, name) for name, address in addresses.items()]

        def launch():
            for memory in read:
                memory.storage()
            again(*[place if place is None else place.tensor() for place in places])

        for memory in read:
            memory.keep()
        again(*tensors)
        self.entries.append(launch)

    def _spoil(self):
        """What was given up since the last operator."""
        self.entries += [own.spoil for own in self.memory.given_up()]

    def _keep(self, function, args, kwargs):
        """What was there before, and is written."""
        for number, argument in enumerate(function._schema.arguments):
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in filter(torch.is_tensor, tree_leaves(value)):
                    memory = self.memory.place(tensor, "").memory
                    if hasattr(memory, "keep"):
                        memory.keep()

    def capture(self, body):
        assert StandIn.active == 0, "a graph inside a graph"
        compiled = _compiled()
        self.memory = Memory()
        StandIn.active += 1
        try:
            with contextlib.ExitStack() as stack:
                for owner, name in READING:
                    stack.enter_context(mock.patch.object(owner, name, _reads(name)))
                with self:
                    body()
        finally:
            StandIn.active -= 1
            self._spoil()
            self.memory.captured()
        if _compiled() != compiled:
            raise _forbidden("a compile")
        StandIn.made.append(self)

    def replay(self):
        assert StandIn.active == 0
        self.replays += 1
        with torch.no_grad():
            for entry in self.entries:
                entry()
        self.memory.replayed()


def _counts(name, args):
    """Whether how large a result is depends on values."""
    if name == "repeat_interleave":
        return True
    return name in ("index", "index_put", "index_put_") and any(
        x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
    )


def _again(function, form, places, made):
    args, kwargs = tree_unflatten([x.tensor() if isinstance(x, Place) else x for x in places], form)
    found = tree_leaves(function(*args, **kwargs))
    for target, value in zip(made, found):
        if target is not None:
            target.tensor().copy_(value)


def _forbidden(what):
    return Forbidden(f"operation not permitted when stream is capturing: {what}")


def _reads(name):
    def read(*arguments, **named):
        raise _forbidden(name)

    return read


def _compiled():
    from torch._dynamo.utils import counters

    return counters["frames"]["total"], counters["stats"]["unique_graphs"]


@pytest.fixture
def cuda_graphs(monkeypatch):
    """Graphs are StandIns; gives their list."""
    monkeypatch.setattr(graphs, "graph_type", StandIn)
    monkeypatch.setattr(StandIn, "made", [])
    monkeypatch.setattr(StandIn, "fail", None)
    yield StandIn.made
    assert StandIn.active == 0


@contextlib.contextmanager
def failing(error, after=3):
    """Captures inside fail with this error after some operators."""
    StandIn.fail = after, error
    try:
        yield
    finally:
        StandIn.fail = None
