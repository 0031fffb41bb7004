"""The sampling loop on a GPU as one CUDA graph, model calls included.

What a replay may change lies in device memory: coefficients, times, seeds, the initial state and the conditions are
copied to where the graph reads them. So one graph serves Programs that differ in numbers only, for the same model
(see fastdiff.runtime.fingerprint), shapes and types.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastdiff.engine.bound import Bound
from fastdiff.engine.device import DeviceEngine
from fastdiff.engine.inputs import Inputs
from fastdiff.program import Apply, Call, Program
from fastdiff.runtime import contents, graphs
from fastdiff.runtime.cuda_graph import ordered
from fastdiff.runtime.fingerprint import Unseen, fingerprint


def run(program: Program, model: Callable[..., Any], x: Tensor, inputs: Inputs) -> Tensor:
    """As fastdiff.engine.run, on the device's engine: as a replay of a graph where there can be one."""
    try:
        seen = None if cannot_capture(inputs, x.device) else fingerprint(model)
    except Unseen:
        seen = None
    if seen is None:
        return _launch(program, model, x, inputs)
    key = (_structure(program), seen, getattr(model, "__name__", ""), _setting(x, inputs))
    with graphs.lock:
        recording = graphs.find(model, key)
        if recording is not None and recording.graph is None and recording.reason is None:
            _capture(recording, program, model, x, inputs)
        if recording is not None and not recording.is_good():
            recording.graph, recording.held, recording.made_of = None, None, []
            recording = None  # what it reads of the weights is made anew by launches
        if recording is None:
            with graphs.one():
                result = _launch(program, model, x, inputs)
            graphs.check_unchanged(model, key, seen)
            return result
        if recording.graph is None:
            return _launch(program, model, x, inputs)
        return _replay(recording, program, x, inputs)


def cannot_capture(inputs: Inputs, device: torch.device) -> str | None:
    """Why a run with these inputs is not even tried to be captured, or None."""
    if (reason := graphs.unavailable(device)) is not None:
        return reason
    for name in inputs.gradients:
        return f"launches: the gradient {name!r} is a function, and what it refers to may change between two runs"
    if inputs.draw is not None:
        return "launches: the noise is given and not computed from seeds"
    for name, conditions in (("cond", inputs.cond), ("uncond", inputs.uncond)):
        if (bad := _not_plain(conditions)) is not None:
            return f"launches: {name}{bad} is neither a tensor nor a number, a string or a mapping of such"
    return None


def _launch(program: Program, model: Callable[..., Any], x: Tensor, inputs: Inputs) -> Tensor:
    bound = Bound("device", program, model, x, inputs)
    bound.start(x, inputs)
    bound.loop()
    return bound.finish()


def _capture(
    recording: graphs.Recording, program: Program, model: Callable[..., Any], x: Tensor, inputs: Inputs
) -> None:
    own = replace(inputs, cond=_copy(inputs.cond), uncond=_copy(inputs.uncond))
    bound = Bound("device", program, model, x, own)
    # A loop has many calls: what they need of a weight costs little if it is made once, and no change is missed then.
    with contents.noted() as noted, contents.inside():
        graphs.capture(recording, bound.loop, x.device)
    if recording.graph is not None:
        recording.made_of = [(weakref.ref(weight), known) for weight, known in noted]
        bound.evaluate.release()
        recording.held = bound


def _replay(recording: graphs.Recording, program: Program, x: Tensor, inputs: Inputs) -> Tensor:
    bound, graph = recording.held, recording.graph
    assert isinstance(bound, Bound)
    assert isinstance(bound.engine, DeviceEngine)
    assert graph is not None
    ordered(recording.streams, x.device, bound.memory)
    bound.program = program  # for messages
    bound.engine.load(program, inputs)
    bound.evaluate.load(program, inputs)
    bound.start(x, inputs)
    graph.replay()
    recording.replays += 1
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
    return (tuple(parts), program.num_slots, program.result, program.states, program.split_output, program.tensors)


def _setting(x: Tensor, inputs: Inputs) -> Hashable:
    """Of the state, the conditions, and what chooses kernels."""
    conditions = _signature(inputs.cond), _signature(inputs.uncond)
    return (tuple(x.shape), x.dtype, x.device, conditions, graphs.settings())


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
