"""How long a call takes on a GPU, from a CUDA graph of many, so that the launches do not count."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, Protocol

import torch

CALLS = 20  # in a graph
ROUNDS = 5  # of which the median is taken


class Timer(Protocol):
    """Times calls on devices of the type `device_type`."""

    device_type: ClassVar[str]

    def __call__(self, run: Callable[[], object], device: torch.device) -> float:
        """Seconds of a call that has run before. Raises RuntimeError where it cannot be timed."""


class PrivateGraph:
    """A CUDA graph for one measurement, with memory and a stream of its own. torch.cuda.graph would collect garbage and
    empty the allocator's cache around each capture, which takes longer than the measurement."""

    _streams: ClassVar[dict[torch.device, torch.cuda.Stream]] = {}

    def __init__(self, device: torch.device) -> None:
        self._device, self._graph = device, torch.cuda.CUDAGraph()

    def capture(self, body: Callable[[], None]) -> None:
        """Record what body() queues. Raises RuntimeError, and leaves no capture behind, if that cannot be recorded."""
        stream = self._streams.setdefault(self._device, torch.cuda.Stream(self._device))
        torch.cuda.synchronize(self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            body()  # what libraries allocate for a stream is not to come from the graph's memory
            torch.cuda.synchronize(self._device)
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                body()
            except BaseException:
                self._give_up()
                raise
            try:
                self._graph.capture_end()
            except RuntimeError:
                self._give_up()
                raise

    def replay(self) -> None:
        """Queue all of it."""
        self._graph.replay()

    def _give_up(self) -> None:
        """End the capture. Where that fails, another one on a new stream gives the random generator back."""
        self._streams.pop(self._device, None)
        with warnings.catch_warnings(), suppress(RuntimeError):  # the first error is the one to report
            warnings.simplefilter("ignore")  # that the graph is empty
            try:
                self._graph.capture_end()
            except RuntimeError:
                with torch.cuda.stream(torch.cuda.Stream(self._device)):
                    empty = torch.cuda.CUDAGraph()
                    empty.capture_begin(capture_error_mode="thread_local")
                    empty.capture_end()


def stopwatch(queue: Callable[[], None], device: torch.device) -> float:
    """Seconds that the device takes for what queue() queues on the current stream, by events."""
    with torch.cuda.device(device):
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started.record()
        queue()
        ended.record()
        ended.synchronize()
        return started.elapsed_time(ended) / 1e3


class GraphTimer:
    """The median time of a replay of CALLS calls, after one that warms up. make_graph, watch: stand-ins for tests."""

    device_type: ClassVar[str] = "cuda"

    def __init__(
        self,
        make_graph: Callable[[torch.device], PrivateGraph] = PrivateGraph,
        watch: Callable[[Callable[[], None], torch.device], float] = stopwatch,
    ) -> None:
        self._make_graph, self._watch = make_graph, watch

    def __call__(self, run: Callable[[], object], device: torch.device) -> float:
        def calls() -> None:
            for _ in range(CALLS):
                run()

        graph = self._make_graph(device)
        graph.capture(calls)
        graph.replay()
        return statistics.median(self._watch(graph.replay, device) for _ in range(ROUNDS)) / CALLS
