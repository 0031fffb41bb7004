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
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from fastdiff.engine.bound import Bound
from fastdiff.engine.device import DeviceEngine
from fastdiff.engine.inputs import Inputs
from fastdiff.engine.references import Unseen, fingerprint, owner
from fastdiff.errors import SamplingError
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


def run(program: Program, model: Callable[..., Any], x: Tensor, inputs: Inputs) -> Tensor:
    """As fastdiff.engine.run, on the device's engine."""
    try:
        seen = None if _not_tried(inputs) else fingerprint(model)
    except Unseen:
        seen = None
    if seen is None:
        return _launch(program, model, x, inputs)
    key = (_structure(program), seen, getattr(model, "__name__", ""), _setting(x, inputs))
    with _lock:
        entries = _entries.setdefault(owner(model), OrderedDict())
        entry = entries.get(key)
        if entry is None:
            entries[key] = _Entry()
            while len(entries) > MAX_GRAPHS:
                entries.popitem(last=False)
            return _launch(program, model, x, inputs)
        entries.move_to_end(key)
        if entry.graph is None and entry.reason is None:
            _capture(entry, program, model, x, inputs)
        if entry.graph is None:
            return _launch(program, model, x, inputs)
        return _replay(entry, program, x, inputs)


def explain(model: Callable[..., Any]) -> list[str]:
    """Of each way in which a model was run on a GPU: whether it is a graph, or why it is launches."""
    if (reason := _unseen(model) or _turned_off()) is not None:
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


def cannot_capture(model: Callable[..., Any], inputs: Inputs) -> str | None:
    """Why a run is not even tried to be captured, or None."""
    return _unseen(model) or _not_tried(inputs)


def _unseen(model: Callable[..., Any]) -> str | None:
    try:
        fingerprint(model)
    except Unseen as error:
        return f"launches: {error}"
    return None


def _turned_off() -> str | None:
    if os.environ.get("FASTDIFF_GRAPH") == "0":
        return "launches: FASTDIFF_GRAPH=0"
    if torch.is_autocast_enabled("cuda"):
        return "launches: autocast is in force, and keeps casts of weights that a graph would own"
    return None


def _not_tried(inputs: Inputs) -> str | None:
    """The same, but for the model."""
    if (reason := _turned_off()) is not None:
        return reason
    for name in inputs.gradients:
        return f"launches: a {name}'s gradient is a function, and what it refers to may change between two runs"
    if inputs.draw is not None:
        return "launches: the noise is given and not computed from seeds"
    for name, conditions in (("cond", inputs.cond), ("uncond", inputs.uncond)):
        if (bad := _not_plain(conditions)) is not None:
            return f"launches: {name}{bad} is neither a tensor nor a number, a string or a mapping of such"
    return None


def _launch(program: Program, model: Callable[..., Any], x: Tensor, inputs: Inputs) -> Tensor:
    bound = Bound("device", program, model, x, inputs)
    bound.start(x)
    bound.loop()
    return bound.finish()


def _capture(entry: _Entry, program: Program, model: Callable[..., Any], x: Tensor, inputs: Inputs) -> None:
    """Into the entry; or the reason why not, with a warning."""
    bound = Bound("device", program, model, x, replace(inputs, cond=_copy(inputs.cond), uncond=_copy(inputs.uncond)))
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


def _replay(entry: _Entry, program: Program, x: Tensor, inputs: Inputs) -> Tensor:
    bound, graph = entry.bound, entry.graph
    assert bound is not None
    assert graph is not None
    assert isinstance(bound.engine, DeviceEngine)
    bound.program = program  # for messages
    bound.engine.load(program, inputs)
    bound.evaluate.load(program, inputs)
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


def _setting(x: Tensor, inputs: Inputs) -> Hashable:
    """Of the state, the conditions and torch."""
    torch_settings = (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    )
    conditions = _signature(inputs.cond), _signature(inputs.uncond)
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


def _copy(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """With tensors of their own: the graph reads these."""
    return {
        key: v.clone() if isinstance(v, Tensor) else _copy(v) if isinstance(v, Mapping) else v
        for key, v in conditions.items()
    }
