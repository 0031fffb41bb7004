"""A captured graph of operators on a GPU, as CUDA graphs: what a call costs is then one launch and not hundreds.

A graph reads parameters and buffers where they are, so that weights written in place are simply read. All other inputs
are copied to where it reads them, and the results are copied to the caller. One graph is good for one signature: the
addresses of the weights, shapes, dtypes and strides of the other inputs, numbers, and the settings that choose kernels.
The first call with a signature is launched, the second is captured, and later ones are replays.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastdiff.compiler import buffers as memory
from fastdiff.compiler.errors import Unsupported
from fastdiff.compiler.outside import Parts, split
from fastdiff.compiler.passes.invariants import Kept
from fastdiff.runtime import contents, graphs
from fastdiff.runtime.cuda_graph import ordered
from fastdiff.runtime.dispatcher import is_memory

MAX_GRAPHS = 4  # of one captured graph; each keeps its inputs and outputs, and all share their activations
_UNUSED = 8  # signatures in a row that came once, or captures that were hardly replayed, after which nobody captures
_data_ptr = Tensor.data_ptr


class Replays:
    """Called with a graph's inputs. launch: the same by launches. moved: why weights lie elsewhere in every call, if
    they do: nothing is captured then."""

    def __init__(
        self, module: fx.GraphModule, launch: Callable[..., Any], device: torch.device, moved: str | None = None
    ) -> None:
        self._module, self._launch, self.device = module, launch, device
        self._kept = [part for part in module.modules() if isinstance(part, Kept)]
        self._parts: dict[bool, Parts] = {}
        self._recordings: OrderedDict[Hashable, graphs.Recording] = OrderedDict()
        self._last: tuple[Any, Hashable, graphs.Recording] | None = None
        self._once = self._wasted = 0
        self._moved = None if moved is None else f"launches: {moved}"
        self.reason = self._moved  # why no call is captured any more
        self._now: str | None = None  # why the last one was not

    def __call__(self, *inputs: Any) -> Any:
        if graphs.within():
            return self._launch(*inputs)
        reason = self.reason or graphs.unavailable(self.device) or _watched()
        if reason is None:
            try:
                parts = self._split()
            except Unsupported as error:
                self.reason = reason = f"launches: {error}"
        self._now = reason
        if reason is not None:
            return self._launch(*inputs)
        made = () if parts.outside is None else parts.outside(*inputs)
        key = self._key(parts, inputs, made)
        with graphs.lock:
            recording = self._find(key)
            if recording is not None and recording.graph is None and recording.reason is None:
                self._capture(key, recording, parts, inputs, made)
            if recording is not None and recording.graph is not None:
                return self._replay(recording, parts, inputs, made)
        return self._launch(*inputs)

    def explain(self) -> list[str]:
        """Of each signature: whether it is a graph, or why it is launches."""
        if (reason := self.reason or self._now) is not None:
            return [reason]
        with graphs.lock:
            return [
                f"a CUDA graph, replayed {recording.replays} times"
                if recording.graph is not None
                else recording.reason or "launches: called once, the second call is captured"
                for recording in self._recordings.values()
            ]

    def forget(self) -> None:
        """Drop all graphs."""
        with graphs.lock:
            self._recordings.clear()
            self._last, self.reason, self._now, self._once, self._wasted = None, self._moved, None, 0, 0

    # ---- which graph -------------------------------------------------------------------------------------------------

    def _split(self) -> Parts:
        inside = all(kept.given_up for kept in self._kept)
        parts = self._parts.get(inside)
        if parts is None:
            parts = self._parts[inside] = split(self._module, self.device.type, kept_inside=inside)
        return parts

    def _key(self, parts: Parts, inputs: tuple[Any, ...], made: Sequence[Any]) -> Hashable:
        given = [inputs[place] for place in parts.tensors]
        tensors = [x for x in made if isinstance(x, Tensor)]
        return (
            id(parts),
            [_layout(x) for x in (*given, *tensors)],
            [inputs[place] for place in parts.numbers],
            [(type(x), x) for x in made if not isinstance(x, Tensor)],
            graphs.settings(),
            torch.is_inference_mode_enabled(),
            [*map(_data_ptr, [inputs[place] for place in parts.weights])],
        )

    def _find(self, key: Any) -> graphs.Recording | None:
        """What is known of the signature; None if it is new."""
        if self._last is not None and self._last[0] == key:
            self._once, recording = 0, self._last[2]
            if recording.is_good():
                return recording
            self._drop(recording)
        word = _hashable(key)
        found = self._recordings.get(word)
        if found is not None and not found.is_good():
            self._drop(found)
            found = None
        if found is None:
            self._add(word)
            return None
        self._once = 0
        self._recordings.move_to_end(word)
        if found.graph is not None:
            self._last = (key, word, found)
        return found

    def _add(self, word: Hashable) -> None:
        """A new signature: what is stale, or was not used for the longest time, goes."""
        for other in [each for each in self._recordings.values() if _is_stale(each)]:
            self._drop(other)
        if self._last is not None:
            self._recordings.move_to_end(self._last[1])
        self._recordings[word] = graphs.Recording()
        while len(self._recordings) > MAX_GRAPHS:
            _, old = self._recordings.popitem(last=False)
            self._wasted = 0 if old.replays > 1 else self._wasted + (old.graph is not None)
        self._once += 1
        if max(self._once, self._wasted) >= _UNUSED:
            self.forget()
            self.reason = "launches: addresses of weights, sizes or numbers are others in nearly every call"

    def _drop(self, recording: graphs.Recording) -> None:
        if self._last is not None and self._last[2] is recording:
            self._last = None
        for word in [word for word, each in self._recordings.items() if each is recording]:
            del self._recordings[word]

    # ---- a graph -----------------------------------------------------------------------------------------------------

    def _capture(
        self, key: Any, recording: graphs.Recording, parts: Parts, inputs: tuple[Any, ...], made: Sequence[Any]
    ) -> None:
        weights = [inputs[place] for place in parts.weights]
        given = [inputs[place] for place in parts.tensors]
        crossing = [x for x in made if isinstance(x, Tensor)]
        if not all(map(is_memory, (*weights, *given, *crossing))):
            recording.reason = "launches: a tensor is no ordinary one"
            return
        if {x.device for x in (*weights, *given, *crossing)} != {self.device}:
            recording.reason = "launches: tensors are on several devices"
            return
        try:
            with torch.inference_mode(False):
                own = [y for x in (*given, *crossing) if (y := memory.own(x)) is not None]
        except torch.cuda.OutOfMemoryError:
            recording.reason = "launches: there was no memory for a graph's inputs"
            return
        if len(own) < len(given) + len(crossing):
            recording.reason = "launches: elements of an input share memory"
            return
        buffers = memory.Buffers(own)
        memory.load(buffers, parts, given, made)
        read = list(inputs)
        for place, tensor in zip(parts.tensors, own):
            read[place] = tensor
        others = iter(own[len(given) :])
        read += [next(others) if isinstance(x, Tensor) else x for x in made]

        def body() -> None:
            buffers.results = parts.inside.forward(*read)

        with contents.noted() as noted:
            graphs.capture(recording, body, self.device)
        if recording.graph is None:
            return
        if (reason := memory.shared(buffers, [*weights, *own[: len(given)]])) is not None:
            recording.graph, recording.reason = None, reason
            return
        buffers.weights = [(weakref.ref(weight), weight.data_ptr()) for weight in weights]
        recording.made_of = [(weakref.ref(weight), content) for weight, content in noted]
        recording.held = buffers
        self._last = (key, _hashable(key), recording)

    def _replay(self, recording: graphs.Recording, parts: Parts, inputs: tuple[Any, ...], made: Sequence[Any]) -> Any:
        buffers, graph = recording.held, recording.graph
        assert graph is not None
        ordered(recording.streams, self.device, lambda: [*buffers.inputs, *memory.tensors(buffers.results)])
        memory.load(buffers, parts, [inputs[place] for place in parts.tensors], made)
        graph.replay()
        recording.replays += 1
        return memory.copies(buffers.results)


def _layout(x: Tensor) -> Hashable:
    return x.shape, x.dtype, x.stride(), x.device


def _hashable(key: Any) -> Hashable:
    return tuple(tuple(part) if isinstance(part, list) else part for part in key)


def _is_stale(recording: graphs.Recording) -> bool:
    """Whether a weight that the graph reads is gone, or elsewhere."""
    return recording.held is not None and any(
        (weight := reference()) is None or weight.data_ptr() != address for reference, address in recording.held.weights
    )


def _watched() -> str | None:
    """Why a mode that is in force wants to see the operators."""
    return "launches: a mode of torch sees the operators" if torch._C._len_torch_dispatch_stack() else None
