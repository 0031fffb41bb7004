"""The sampling loop on a GPU as one CUDA graph, model calls included.

The first run of a model with a Program of some shape is made of launches, which is also what a capture needs to have
been done before. The second is captured, and it and all later ones are replays: coefficients, times, seeds, the initial
state and the conditions are copied to where the graph reads them. A graph is of use for the same model object, a module
or a function, with all that it refers to as it was (see references), the same shapes and types, and Programs that
differ in numbers only.
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fastdiff.engine.bound import Bound
from fastdiff.engine.cuda import CudaEngine
from fastdiff.engine.references import Unseen, fingerprint, owner
from fastdiff.errors import SamplingError
from fastdiff.guidance import Classifier
from fastdiff.process.noise import CounterNoise, NoiseFunction
from fastdiff.program import Apply, Call, Program
from fastdiff.runtime import choice

MAX_GRAPHS = 4  # of a model; each keeps the memory of its activations


class GraphWarning(UserWarning):
    """A sampling loop could not be captured and runs as launches."""


class Graph(Protocol):
    """A recording of what a function queues on a device."""

    def capture(self, body: Callable[[], None]) -> None:
        """Record, without running it."""

    def replay(self) -> None:
        """Queue all of it."""


class CudaGraph:
    """torch's."""

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()

    def capture(self, body: Callable[[], None]) -> None:
        with torch.cuda.graph(self.graph):
            body()

    def replay(self) -> None:
        self.graph.replay()


make_graph: Callable[[], Graph] = CudaGraph


@dataclass
class _Entry:
    """What is known of a key: why it is not captured, or the graph and what it reads and writes."""

    reason: str | None = None
    bound: Bound | None = None
    graph: Graph | None = None


_entries: weakref.WeakKeyDictionary[Any, OrderedDict[Hashable, _Entry]] = weakref.WeakKeyDictionary()
_lock = threading.RLock()  # a graph has one set of buffers


def run(
    program: Program,
    model: Callable[..., Any],
    x: Tensor,
    *,
    cond: Mapping[str, Any] | None,
    uncond: Mapping[str, Any] | None,
    classifier: Classifier | None,
    counter: CounterNoise,
    draw: NoiseFunction | None,
) -> Tensor:
    """As fastdiff.engine.run, on the CUDA engine."""
    arguments: dict[str, Any] = dict(cond=cond, uncond=uncond, classifier=classifier, counter=counter, draw=draw)
    try:
        seen = None if _not_tried(cond, uncond, classifier, draw) else fingerprint(model)
    except Unseen:
        seen = None
    if seen is None:
        return _launch(program, model, x, arguments)
    key = (_structure(program), seen, getattr(model, "__name__", ""), _setting(x, cond, uncond))
    with _lock:
        entries = _entries.setdefault(owner(model), OrderedDict())
        entry = entries.get(key)
        if entry is None:
            entries[key] = _Entry()
            while len(entries) > MAX_GRAPHS:
                entries.popitem(last=False)
            return _launch(program, model, x, arguments)
        entries.move_to_end(key)
        if entry.graph is None and entry.reason is None:
            _capture(entry, program, model, x, arguments)
        if entry.graph is None:
            return _launch(program, model, x, arguments)
        return _replay(entry, program, x, cond, uncond, counter)


def explain(model: Callable[..., Any]) -> list[str]:
    """Of each way in which a model was run on a GPU: whether it is a graph, or why it is launches."""
    if (reason := cannot_capture(model, None, None, None, None)) is not None:
        return [reason]
    with _lock:
        entries = _entries.get(owner(model), OrderedDict())
        return [
            "a CUDA graph" if e.graph is not None else e.reason or "launches: run once, the second run is captured"
            for e in entries.values()
        ]


def forget(model: Callable[..., Any]) -> None:
    """Drop the graphs of a model: after a change to a module that is not one of its parameters, buffers or plain
    attributes."""
    with _lock:
        _entries.pop(owner(model), None)


def cannot_capture(
    model: Callable[..., Any],
    cond: Mapping[str, Any] | None,
    uncond: Mapping[str, Any] | None,
    classifier: Classifier | None,
    draw: NoiseFunction | None,
) -> str | None:
    """Why a run is not even tried to be captured, or None."""
    try:
        fingerprint(model)
    except Unseen as error:
        return f"launches: {error}"
    return _not_tried(cond, uncond, classifier, draw)


def _not_tried(
    cond: Mapping[str, Any] | None,
    uncond: Mapping[str, Any] | None,
    classifier: Classifier | None,
    draw: NoiseFunction | None,
) -> str | None:
    """The same, but for the model."""
    if os.environ.get("FASTDIFF_GRAPH") == "0":
        return "launches: FASTDIFF_GRAPH=0"
    if classifier is not None:
        return "launches: a classifier's gradient is a function, and what it refers to may change between two runs"
    if draw is not None:
        return "launches: the noise is given and not computed from seeds"
    if torch.is_autocast_enabled("cuda"):
        return "launches: autocast is in force, and keeps casts of weights that a graph would own"
    for name, conditions in (("cond", cond), ("uncond", uncond)):
        if (bad := _not_plain(conditions or {})) is not None:
            return f"launches: {name}{bad} is neither a tensor nor a number, a string or a mapping of such"
    return None


def _launch(program: Program, model: Callable[..., Any], x: Tensor, arguments: dict[str, Any]) -> Tensor:
    bound = Bound("cuda", program, model, x, **arguments)
    bound.start(x)
    bound.loop()
    return bound.finish()


def _capture(entry: _Entry, program: Program, model: Callable[..., Any], x: Tensor, arguments: dict[str, Any]) -> None:
    """Into the entry; or the reason why not, with a warning."""
    static = {name: _copy(arguments[name]) for name in ("cond", "uncond")}
    bound = Bound("cuda", program, model, x, **{**arguments, **static})
    graph = make_graph()
    try:
        graph.capture(bound.loop)
    except (RuntimeError, SamplingError) as error:
        # Whatever broke a capture, an operation that waits for the device or the model itself: launches show which.
        entry.reason = f"launches: the model could not be captured: {str(error).splitlines()[0]}"
        warnings.warn(f"fastdiff: {entry.reason}", GraphWarning, stacklevel=2)
        return
    bound.evaluate.release()
    entry.graph, entry.bound = graph, bound


def _replay(
    entry: _Entry,
    program: Program,
    x: Tensor,
    cond: Mapping[str, Any] | None,
    uncond: Mapping[str, Any] | None,
    counter: CounterNoise,
) -> Tensor:
    bound, graph = entry.bound, entry.graph
    assert bound is not None
    assert graph is not None
    assert isinstance(bound.engine, CudaEngine)
    bound.program = program  # for messages
    bound.engine.load(program, counter)
    bound.evaluate.load(program, cond or {}, uncond or {})
    bound.start(x)
    graph.replay()
    return bound.finish().clone()


# ---- what a graph is good for ----------------------------------------------------------------------------------------


def _structure(program: Program) -> Hashable:
    """All of a Program but numbers that are read from device memory."""
    parts: list[Hashable] = []
    for index, i in enumerate(program.instructions):
        if isinstance(i, Call):
            parts.append((i.input, i.guided, i.network, i.variance))
        elif isinstance(i, Apply):
            parts.append((i.function, i.inputs, i.parameters))
        else:
            slots, kinds, numbers, _ = program.tables[index]
            parts.append((tuple(slots), tuple(kinds), tuple(numbers)))
    return (tuple(parts), program.num_slots, program.result, program.states, program.split_output)


def _setting(x: Tensor, cond: Mapping[str, Any] | None, uncond: Mapping[str, Any] | None) -> Hashable:
    """Of the state, the conditions and torch."""
    torch_settings = (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    )
    conditions = tuple(_signature(c or {}) for c in (cond, uncond))
    return (tuple(x.shape), x.dtype, x.device, conditions, torch_settings, choice.current())


def _signature(conditions: Mapping[str, Any]) -> Hashable:
    return tuple(
        (key, _signature(v))
        if isinstance(v, Mapping)
        else (key, tuple(v.shape), v.dtype, v.device)
        if isinstance(v, Tensor)
        else (key, type(v), v)
        for key, v in sorted(conditions.items())
    )


def _not_plain(conditions: Mapping[str, Any], inside: str = "") -> str | None:
    """Where something is that is neither copied into a graph's memory nor compared."""
    for key, value in conditions.items():
        name = f"{inside}[{key!r}]"
        if isinstance(value, Mapping):
            if (found := _not_plain(value, name)) is not None:
                return found
        elif not isinstance(value, (Tensor, bool, int, float, str, type(None))):
            return name
    return None


def _copy(conditions: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """With tensors of their own: the graph reads these."""
    if conditions is None:
        return None
    return {
        key: v.clone() if isinstance(v, Tensor) else _copy(v) if isinstance(v, Mapping) else v
        for key, v in conditions.items()
    }
