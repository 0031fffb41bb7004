"""Workers as the driver sees them, and the simplest: this process itself."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastdiff.distributed.storage import FULL
from fastdiff.errors import WeightsError

Unit = Sequence[Any]  # as JSON holds it
REFUSALS = (ValueError, TypeError, ImportError, NotImplementedError, WeightsError)  # another try would end alike


class Runner(Protocol):
    """What a worker does with the units of a job."""

    def hello(self) -> dict[str, Any]:
        """Versions, kind and place of the worker."""

    def make(self, unit: Unit) -> dict[str, Any]:
        """Make a unit whole; what the driver is told of it, JSON."""


@dataclass(frozen=True)
class Event:
    """what: "ready" with the hello, "refused" with the reason, "done" with what `make` returned, "failed" with kind and
    text, or "died" with what is known of it."""

    worker: str
    what: str
    data: Any


class Pool(Protocol):
    """Workers that take one unit at a time."""

    def start(self) -> None:
        """Begin to start them; they become ready by their events."""

    def send(self, worker: str, unit: Unit) -> None:
        """To a worker that is ready."""

    def events(self, seconds: float) -> list[Event]:
        """What happened; waits at most so long for the first."""

    def replace(self) -> None:
        """Start one more, for one that died."""

    def stop(self, worker: str) -> None:
        """End a worker, whatever it does; it dies by an event."""

    def close(self) -> None:
        """End them all."""


def failure(error: Exception) -> dict[str, str]:
    """kind: "full" if the store has no room, else "error"; text: one line."""
    text = " ".join(str(error).split())[:400]
    full = isinstance(error, OSError) and error.errno in FULL
    named = text if isinstance(error, (ValueError, OSError)) and text else f"{type(error).__name__}: {text}"
    return {"kind": "full" if full else "error", "text": named}


def full_disk(text: str) -> OSError:
    """What the driver raises."""
    return OSError(errno.ENOSPC, f"{text}. What is made is kept; make room and go on by --resume")


class InProcess:
    """One worker, this process: `events` makes the unit that was sent."""

    def __init__(self, make_runner: Callable[[], Runner]) -> None:
        self.make_runner = make_runner
        self._runner: Runner | None = None
        self._unit: Unit | None = None

    def start(self) -> None:
        self._runner = self.make_runner()  # its errors are raised as they are

    def send(self, worker: str, unit: Unit) -> None:
        self._unit = unit

    def events(self, seconds: float) -> list[Event]:
        assert self._runner is not None
        if self._unit is None:
            return [Event("0", "ready", self._runner.hello())]
        unit, self._unit = self._unit, None
        try:
            return [Event("0", "done", self._runner.make(unit))]
        except Exception as error:
            return [Event("0", "failed", failure(error))]

    def replace(self) -> None:
        raise AssertionError("this process cannot be replaced")

    def stop(self, worker: str) -> None:
        """Nothing: a unit that runs here cannot be ended."""

    def close(self) -> None:
        """Nothing to end."""
