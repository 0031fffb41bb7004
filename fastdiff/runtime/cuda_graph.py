"""torch's CUDA graphs: a capture that leaves nothing behind if it fails, and the order among several streams."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar

import torch
from torch import Tensor


class CudaGraph:
    """torch's. Those of a device are captured on one stream, so that they can share the memory of their activations:
    only one of them runs at a time (see `ordered`)."""

    device_type: ClassVar[str] = "cuda"
    _captured: ClassVar[weakref.WeakSet[CudaGraph]] = weakref.WeakSet()
    _streams: ClassVar[dict[torch.device, torch.cuda.Stream]] = {}
    pool: Any = None

    def __init__(self, device: torch.device) -> None:
        self.device, self.graph = device, torch.cuda.CUDAGraph()

    def capture(self, body: Callable[[], None]) -> None:
        with torch.cuda.device(self.device):
            before = torch.cuda.current_stream()
            stream = self._streams.setdefault(self.device, torch.cuda.Stream())
            # Of a graph that is still there: torch takes no pool that nobody uses any more.
            shared = next((other.pool for other in self._captured if other.device == self.device), None)
            pool = torch.cuda.graph_pool_handle() if shared is None else shared
            failed: list[BaseException] = []
            try:
                # Only this thread is kept from what a capture forbids: others allocate memory meanwhile.
                mode = "thread_local"
                with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode=mode):
                    try:
                        body()
                    except BaseException as error:
                        failed.append(error)
                        raise
            except BaseException as error:
                self._captured.clear()  # no later capture shares the pool, or the stream
                self._streams.clear()
                clean_up(self.device, pool, before)
                if failed and error is not failed[0]:  # ending a broken capture raises an error that says nothing
                    raise failed[0] from None
                raise
        self.pool = pool
        self._captured.add(self)

    def replay(self) -> None:
        self.graph.replay()


def clean_up(device: torch.device, pool: Any, before: torch.cuda.Stream) -> None:
    """After a capture that failed: what torch leaves as it was during one if ending it fails too, as it does after a
    forbidden operation. The current stream, the allocator, which still counts the pool as captured to, and the random
    generator, which would refuse to draw."""
    torch.cuda.set_stream(before)
    index = torch.cuda.current_device() if device.index is None else device.index
    with suppress(RuntimeError, AttributeError):  # it did end, or this torch names it otherwise
        torch._C._cuda_endAllocateToPool(index, pool)
        torch._C._cuda_releasePool(index, pool)
    with warnings.catch_warnings(), suppress(RuntimeError):  # the first error is the one to report
        warnings.simplefilter("ignore")  # that the graph is empty
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=torch.cuda.Stream()):
            pass  # the end of a capture is what gives the generator back
    torch.cuda.set_stream(before)
    generators = torch.cuda.default_generators
    if index < len(generators) and not _draws(generators[index], device):
        # Not even then: the same seed and offset in a state that no capture knows.
        generators[index].graphsafe_set_state(generators[index].clone_state())


def _draws(generator: torch.Generator, device: torch.device) -> bool:
    """Whether random numbers can be drawn; the generator is left as it was."""
    state = generator.get_state()
    try:
        torch.empty(1, dtype=torch.float32, device=device).uniform_(generator=generator)
    except RuntimeError:
        return False
    generator.set_state(state)
    return True


_last: dict[torch.device, torch.cuda.Stream] = {}  # on which a graph of a device ran


def ordered(used: set[int], device: torch.device, memory: Callable[[], Sequence[Tensor]]) -> None:
    """Before a replay: let the current stream wait for the last graph on the device, which has the same activations.

    used: the streams on which this graph ran. memory: its tensors that are no activations, which must not be freed
    while a stream uses them.
    """
    if device.type != "cuda":
        return
    stream = torch.cuda.current_stream(device)
    last = _last.get(device)
    if last is None or last.cuda_stream != stream.cuda_stream:
        if last is not None:
            stream.wait_stream(last)
        _last[device] = stream
    if stream.cuda_stream not in used:
        used.add(stream.cuda_stream)
        for tensor in memory():
            tensor.record_stream(stream)


class Made:
    """On which stream of a GPU something was made that later calls read, which may run on another one."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    @classmethod
    def on(cls, device: torch.device) -> Made | None:
        """What is made now; None where there are no streams."""
        return cls(torch.cuda.current_stream(device)) if device.type == "cuda" else None

    def hand_over(self, tensors: Sequence[Tensor]) -> None:
        """Before the current stream reads these."""
        stream = torch.cuda.current_stream(self._stream.device)
        if stream.cuda_stream != self._stream.cuda_stream:
            stream.wait_stream(self._stream)
            for tensor in tensors:
                tensor.record_stream(stream)
