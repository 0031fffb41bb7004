"""In the place of a CUDA graph, on the CPU: a tape that forbids what a capture forbids, and breaks what it would break.

A capture runs the operators, as the tape needs their results; these are then filled with NaN, since a real capture
computes nothing. Replays do the operators again, without Python's part of them.
"""

import contextlib
import math
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff.runtime import graphs

WAITING = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_dim"}
RANDOM = torch.Tag.nondeterministic_seeded


class Forbidden(RuntimeError):
    """As torch raises it: operation not permitted when stream is capturing."""


class StandIn(TorchDispatchMode):
    """made: all that were captured, in this process. fail: raised after so many operators of a capture."""

    device_type = "cpu"
    made: ClassVar[list] = []
    fail: "tuple[int, BaseException] | None" = None
    active = 0

    def __init__(self, device):
        super().__init__()
        assert device.type == "cpu"
        self.entries, self.results, self.replays = [], [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name.partition("::")[2]
        if name in WAITING or RANDOM in function.tags:
            raise Forbidden(f"operation not permitted when stream is capturing: {name}")
        devices = {x.device.type for x in torch.utils._pytree.tree_leaves((args, kwargs)) if torch.is_tensor(x)}
        if len(devices) > 1 or kwargs.get("device", torch.device("cpu")).type != "cpu":
            raise Forbidden(f"operation not permitted when stream is capturing: {name} to another device")
        result = function(*args, **kwargs)
        given = {t.untyped_storage().data_ptr() for t in torch.utils._pytree.tree_leaves(args) if torch.is_tensor(t)}
        tensors = [t for t in (result if isinstance(result, (tuple, list)) else [result]) if torch.is_tensor(t)]
        fresh = [t for t in tensors if t.untyped_storage().data_ptr() not in given]
        self.results += fresh
        if fresh:

            def again():
                made = function(*args, **kwargs)
                for target, value in zip(tensors, made if isinstance(made, (tuple, list)) else [made]):
                    target.copy_(value)

            self.entries.append(again)
        elif function._schema.is_mutable:
            self.entries.append(lambda: function(*args, **kwargs))
        if StandIn.fail is not None and len(self.entries) >= StandIn.fail[0]:
            raise StandIn.fail[1]
        return result

    def capture(self, body):
        assert StandIn.active == 0, "a graph inside a graph"
        compiled = _compiled()
        StandIn.active += 1
        try:
            with self:
                body()
        finally:
            StandIn.active -= 1
            for result in self.results:
                if result.is_floating_point():
                    result.fill_(math.nan)
        if _compiled() != compiled:
            raise Forbidden("operation not permitted when stream is capturing: a compile")
        StandIn.made.append(self)

    def replay(self):
        assert StandIn.active == 0
        self.replays += 1
        with torch.no_grad():
            for entry in self.entries:
                entry()


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
