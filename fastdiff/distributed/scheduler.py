"""Which worker makes which unit: a state machine without a clock, processes or files.

The driver says what happened and when (`ready`, `done`, `failed`, `died`), and asks `orders` what to send where.
Times are seconds of any clock that does not go back.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """When to give up. failures: errors of a unit. deaths: workers that died at a unit. copies: workers that may make
    one unit at a time. late: a unit is also given to an idle worker when it takes so many times the median.
    unit_seconds: a worker that needs longer for a unit is stopped and counts as dead; None for no limit. starts: how
    many workers in a row may die without a unit, and how many of the first units may fail."""

    failures: int = 3
    deaths: int = 4
    copies: int = 2
    late: float = 3.0
    unit_seconds: float | None = None
    starts: int = 5


@dataclass
class Throughput:
    """What one worker has done: units, and the seconds that it worked on them."""

    units: int = 0
    seconds: float = 0.0


@dataclass
class _Trouble:
    failures: int = 0
    deaths: int = 0


@dataclass
class Progress:
    """units: of the job; done: of these, also before this run; made: in this run. given_up, waiting, running: units.
    seconds: since the first worker was ready; left: that are expected, None before the first unit. retries, deaths,
    copies: so far. workers: what each has done, dead ones too."""

    units: int
    done: int
    made: int
    given_up: int
    waiting: int
    running: int
    seconds: float
    left: float | None
    retries: int
    deaths: int
    copies: int
    workers: dict[str, Throughput]


@dataclass
class Scheduler:
    """Units 0 to `units` - 1, without those that are `finished` already.

    given_up: unit -> why it will not be made.
    """

    units: int
    finished: set[int] = field(default_factory=set)
    limits: Limits = field(default_factory=Limits)
    given_up: dict[int, str] = field(default_factory=dict)
    workers: dict[str, Throughput] = field(default_factory=dict)
    made: int = 0
    retries: int = 0
    deaths: int = 0
    copies: int = 0

    def __post_init__(self) -> None:
        self._waiting = deque(unit for unit in range(self.units) if unit not in self.finished)
        self._idle: dict[str, None] = {}
        self._running: dict[str, tuple[int, float]] = {}  # worker -> (unit, since when), the longest first
        self._makers: dict[int, set[str]] = {}
        self._trouble: dict[int, _Trouble] = {}
        self._durations: deque[float] = deque(maxlen=101)
        self._lost_in_a_row = 0
        self._began: float | None = None

    @property
    def over(self) -> bool:
        """Whether every unit is made or given up."""
        return len(self.finished) + len(self.given_up) == self.units

    @property
    def hopeless(self) -> str:
        """Why it makes no sense to go on; empty if it does."""
        if self._lost_in_a_row >= self.limits.starts:
            return f"{self._lost_in_a_row} workers in a row died before they did anything"
        if not self.made and len(self.given_up) >= self.limits.starts:
            return f"the first {len(self.given_up)} units all failed"
        return ""

    def ready(self, worker: str, now: float) -> None:
        """A worker can take a unit."""
        self._began = now if self._began is None else self._began
        self.workers.setdefault(worker, Throughput())
        self._idle[worker] = None

    def orders(self, now: float) -> list[tuple[str, int]]:
        """(worker, unit) to start now: waiting units, then those that take too long a second time."""
        found = []
        while self._idle and self._waiting:
            found.append(self._start(self._waiting.popleft(), now))
        if self._idle and self._running:
            for unit in self._late(now)[: len(self._idle)]:
                self.copies += 1
                found.append(self._start(unit, now))
        return found

    def overdue(self, now: float) -> list[str]:
        """Workers to stop, as their unit takes longer than `unit_seconds`."""
        limit = self.limits.unit_seconds
        return [] if limit is None else [w for w, (_, since) in self._running.items() if now - since > limit]

    def done(self, worker: str, now: float) -> bool:
        """A worker has made its unit. False if another was first."""
        unit, since = self._running.pop(worker)
        self._leave(unit, worker)
        throughput = self.workers[worker]
        throughput.units += 1
        throughput.seconds += now - since
        self._durations.append(now - since)
        self._lost_in_a_row = 0
        self._idle[worker] = None
        if unit in self.finished:
            return False
        self.finished.add(unit)
        self.made += 1
        return True

    def failed(self, worker: str, now: float, why: str) -> None:
        """A worker could not make its unit, and takes another."""
        unit, since = self._running.pop(worker)
        self._leave(unit, worker)
        self.workers[worker].seconds += now - since
        self._idle[worker] = None
        trouble = self._trouble.setdefault(unit, _Trouble())
        trouble.failures += 1
        self._again(unit, trouble, trouble.failures >= self.limits.failures, why)

    def died(self, worker: str, why: str) -> None:
        """A worker is gone, with its unit if it had one. It counts against the unit."""
        self.deaths += 1
        self._idle.pop(worker, None)
        if worker not in self._running:
            self._lost_in_a_row += 1
            return
        unit, _ = self._running.pop(worker)
        self._leave(unit, worker)
        trouble = self._trouble.setdefault(unit, _Trouble())
        trouble.deaths += 1
        self._again(unit, trouble, trouble.deaths >= self.limits.deaths, why)

    def progress(self, now: float) -> Progress:
        """How far it is."""
        seconds = 0.0 if self._began is None else now - self._began
        open_units = self.units - len(self.finished) - len(self.given_up)
        left = open_units * seconds / self.made if self.made else (None if open_units else 0.0)
        return Progress(
            self.units, len(self.finished), self.made, len(self.given_up), len(self._waiting), len(self._running),
            seconds, left, self.retries, self.deaths, self.copies, self.workers,
        )  # fmt: skip

    def works(self, worker: str) -> bool:
        """Whether a worker has a unit."""
        return worker in self._running

    def unit_of(self, worker: str) -> int:
        """What a worker makes now. Raises KeyError if it makes nothing."""
        return self._running[worker][0]

    def _start(self, unit: int, now: float) -> tuple[str, int]:
        worker = next(iter(self._idle))
        del self._idle[worker]
        self._running[worker] = (unit, now)
        self._makers.setdefault(unit, set()).add(worker)
        return worker, unit

    def _late(self, now: float) -> list[int]:
        """Units that take too long and may have another worker."""
        if not self._durations:
            return []
        limit = self.limits.late * statistics.median(self._durations)
        found = []
        for unit, since in self._running.values():
            if now - since <= limit:
                break
            if len(self._makers[unit]) < self.limits.copies and unit not in self.finished and unit not in found:
                found.append(unit)
        return found

    def _leave(self, unit: int, worker: str) -> None:
        makers = self._makers[unit]
        makers.discard(worker)
        if not makers:
            del self._makers[unit]

    def _again(self, unit: int, trouble: _Trouble, enough: bool, why: str) -> None:
        """Back to the end of the queue, or given up; nothing if it is made, or another worker still tries."""
        if unit in self.finished or unit in self._makers or unit in self.given_up:
            return
        if enough:
            self.given_up[unit] = f"{why} ({trouble.failures} failures, {trouble.deaths} deaths)"
        else:
            self.retries += 1
            self._waiting.append(unit)
