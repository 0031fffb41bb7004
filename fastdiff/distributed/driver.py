"""The loop between the scheduler, which decides, and a pool of workers, which do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastdiff.distributed.manifest import refuse_other_versions, versions
from fastdiff.distributed.pools import Event, Pool, Unit, full_disk
from fastdiff.distributed.scheduler import Limits, Progress, Scheduler

TICK = 0.5  # seconds between two looks at what takes too long


@dataclass
class Driver:
    """Has a pool make units. Workers stay ready from one `run` to the next.

    on_hello(worker, hello) may refuse a worker by ValueError; on_progress(progress). differing: units that two workers
    made with other bits.
    """

    pool: Pool
    limits: Limits = field(default_factory=Limits)
    on_hello: Callable[[str, dict[str, Any]], None] | None = None
    on_progress: Callable[[Progress], None] | None = None
    clock: Callable[[], float] = time.monotonic
    places: dict[str, str] = field(default_factory=dict)
    differing: list[int] = field(default_factory=list)
    _free: dict[str, bool] = field(default_factory=dict)  # workers that were ready, and whether they have no unit
    _started: bool = False
    _last_death: str = ""

    def run(self, units: Sequence[Unit], done: dict[int, Any]) -> Scheduler:
        """Make the units that are not in `done`, number -> what `make` returned, and put them there.

        What could not be made is in the scheduler's `given_up`. Raises ValueError for what no worker can do, OSError
        for a full store, RuntimeError if nothing can be made.
        """
        scheduler = Scheduler(len(units), set(done), self.limits)
        if scheduler.over:
            return scheduler
        if not self._started:
            self._started = True
            self.pool.start()
        for worker in [worker for worker, free in self._free.items() if free]:
            scheduler.ready(worker, self.clock())
        while not scheduler.over:
            for worker, number in scheduler.orders(self.clock()):
                self._free[worker] = False
                self.pool.send(worker, units[number])
            for event in self.pool.events(TICK):
                self._handle(event, scheduler, done)
                if self.on_progress is not None:
                    self.on_progress(scheduler.progress(self.clock()))
            for worker in scheduler.overdue(self.clock()):
                self.pool.stop(worker)
            if scheduler.hopeless:
                why = next(iter(scheduler.given_up.values()), self._last_death)
                raise RuntimeError(f"{scheduler.hopeless}: {why}")
        return scheduler

    def _handle(self, event: Event, scheduler: Scheduler, done: dict[int, Any]) -> None:
        worker, now = event.worker, self.clock()
        if event.what == "ready":
            who = f"worker {worker} ({event.data['place']})"
            refuse_other_versions(versions(), event.data["versions"], who)
            if self.on_hello is not None:
                self.on_hello(who, event.data)
            self.places[worker] = event.data["place"]
            self._free[worker] = True
            scheduler.ready(worker, now)
        elif event.what == "refused":
            raise ValueError(event.data)
        elif event.what == "died":
            self._last_death = event.data
            self._free.pop(worker, None)
            scheduler.died(worker, event.data)
            if not scheduler.over:
                self.pool.replace()
        elif not scheduler.works(worker):  # on a copy that was late in the run before
            self._free[worker] = True
            scheduler.ready(worker, now)
        elif event.what == "done":
            self._free[worker] = True
            number = scheduler.unit_of(worker)
            if event.data.pop("differs", None):
                self.differing.append(number)
            if scheduler.done(worker, now):
                done[number] = event.data
        else:
            if event.data["kind"] == "full":
                raise full_disk(event.data["text"])
            self._free[worker] = True
            scheduler.failed(worker, now, event.data["text"])
