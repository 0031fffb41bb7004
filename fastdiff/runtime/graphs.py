"""CUDA graphs: recordings of what is queued on a GPU, kept as long as what they were made of is the same.

A caller describes its work by a key, which holds the model's fingerprint. The first time that a key is seen the work
runs as launches, which a capture needs to have been done before; the second time it is captured, and from then on
replayed. There is one cache for all callers, and the graphs of a device share their memory.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch

from fastdiff.runtime import choice, eager, environment
from fastdiff.runtime.cuda_graph import CudaGraph
from fastdiff.runtime.fingerprint import Unseen, fingerprint, owner

MAX_GRAPHS = 4  # of a model; each keeps the memory of its activations


class GraphWarning(UserWarning):
    """Something could not be captured and runs as launches."""


class Graph(Protocol):
    """A recording of what a function queues on a device of the type `device_type`."""

    device_type: ClassVar[str]

    def __init__(self, device: torch.device) -> None: ...

    def capture(self, body: Callable[[], None]) -> None:
        """Record, without running it."""

    def replay(self) -> None:
        """Queue all of it."""


graph_type: type[Graph] = CudaGraph


@dataclass
class Recording:
    """What is known of a key: the graph and what it reads and writes, for the caller, or why it is not captured.

    streams: on which its memory was used. replays: how many. made_of: the weights of which it reads another form, with
    what was known of them (fastdiff.runtime.contents).
    """

    graph: Graph | None = None
    held: Any = None
    reason: str | None = None
    replays: int = 0
    streams: set[int] = field(default_factory=set)
    made_of: list[tuple[weakref.ref[Any], Any]] = field(default_factory=list)

    def is_good(self) -> bool:
        """Whether the weights of which the graph reads another form are as they were."""
        return all((weight := ref()) is not None and known.holds(weight) for ref, known in self.made_of)


_recordings: weakref.WeakKeyDictionary[Any, OrderedDict[Hashable, Recording]] = weakref.WeakKeyDictionary()
lock = threading.RLock()  # held from `find` to the end of a replay: a graph has one set of buffers


def unavailable(device: torch.device | None = None) -> str | None:
    """Why nothing is captured on a device now, or None."""
    if not environment.read("FASTDIFF_GRAPH", True):
        return "launches: FASTDIFF_GRAPH=0"
    if (reason := eager.wanted()) is not None:
        return f"launches: {reason}"
    if torch.is_autocast_enabled("cuda"):
        return "launches: autocast is in force, and keeps casts of weights that a graph would own"
    if device is not None and device.type != graph_type.device_type:
        return f"launches: there are no graphs on {device}"
    return None


_captures: ContextVar[bool] = ContextVar("captures", default=False)
_one: ContextVar[bool] = ContextVar("one", default=False)


def capturing() -> bool:
    """Whether what is queued now is recorded by a capture, anyone's, and must not wait for values."""
    return _captures.get() or (torch.backends.cuda.is_built() and torch.cuda.is_current_stream_capturing())


@contextmanager
def one() -> Iterator[None]:
    """The block is launched now and will be one graph: no part of it gets a graph of its own."""
    token = _one.set(True)
    try:
        yield
    finally:
        _one.reset(token)


def within() -> bool:
    """Whether what runs now is, or will be, part of a graph."""
    return _one.get() or capturing()


def unseen(model: Callable[..., Any]) -> str | None:
    """Why no graph of a model can be kept, or None."""
    try:
        fingerprint(model)
    except Unseen as error:
        return f"launches: {error}"
    return None


def settings() -> Hashable:
    """What decides which kernels run, apart from the model and its arguments."""
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        choice.current(),
    )


def find(model: Callable[..., Any], key: Hashable) -> Recording | None:
    """The recording of a model's work with this key, None the first time. Only the last MAX_GRAPHS of a model stay."""
    with lock:
        recordings = _recordings.setdefault(owner(model), OrderedDict())
        found = recordings.get(key)
        if found is None:
            recordings[key] = Recording()
            while len(recordings) > MAX_GRAPHS:
                recordings.popitem(last=False)
            return None
        recordings.move_to_end(key)
        return found


def check_unchanged(model: Callable[..., Any], key: Hashable, seen: Hashable) -> None:
    """After the first run with a key: that the run has left the fingerprint `seen` as it was. If not, the key will not
    come again, and why is noted: the tensor that a run puts into an attribute may be what the next one reads."""
    try:
        changed = fingerprint(model) != seen
    except Unseen:
        changed = True
    if changed and (recording := find(model, key)) is not None:
        recording.reason = "launches: this run changed the model: an attribute, a part or a hook was replaced"


def capture(recording: Recording, body: Callable[[], None], device: torch.device) -> None:
    """Record what body() queues; if that fails, the reason and a warning, and it is not tried again.

    What is no error of the model's, such as KeyboardInterrupt, is raised, and the recording stays as it was.
    """
    graph = graph_type(device)
    token = _captures.set(True)
    try:
        graph.capture(body)
    except Exception as error:
        # Whatever broke a capture, an operation that waits for the device or the model itself: launches show which.
        message = str(error) or type(error).__name__
        recording.reason = f"launches: the model could not be captured: {message.splitlines()[0]}"
        warnings.warn(f"fastdiff: {recording.reason}", GraphWarning, stacklevel=3)
    else:
        recording.graph = graph
    finally:
        _captures.reset(token)


def explain(model: Callable[..., Any]) -> list[str]:
    """Of each way in which a model was run on a GPU: whether it is a graph, or why it is launches."""
    if (reason := unseen(model) or unavailable()) is not None:
        return [reason]
    with lock:
        return [
            "a CUDA graph" if r.graph is not None else r.reason or "launches: run once, the second run is captured"
            for r in _recordings.get(owner(model), OrderedDict()).values()
        ]


def forget(model: Callable[..., Any]) -> None:
    """Drop the graphs of a model, after a change to it that its fingerprint does not see."""
    with lock:
        _recordings.pop(owner(model), None)
