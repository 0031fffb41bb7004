"""A job made by the processes of torchrun, for clusters that start programs that way.

There is no driver: each process takes the next unit from a counter in the key-value store that torchrun has. Rank 0
begins the job and ends it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from fastdiff.distributed.manifest import refuse_other_versions, versions
from fastdiff.distributed.pools import Runner, failure, full_disk
from fastdiff.distributed.scheduler import Limits, Progress, Throughput

PATIENCE = timedelta(days=30)  # for the slowest of all processes; torchrun ends them if one dies


def inside() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """Number of this process; 0 outside torchrun."""
    return int(os.environ.get("RANK", "0")) if inside() else 0


def restarted() -> bool:
    """Whether torchrun starts the processes once more, since one died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


class Peers:
    """All processes of the run."""

    def __init__(self) -> None:
        store, self.rank, self.size = next(distributed.rendezvous("env://"))
        store.set_timeout(PATIENCE)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = distributed.PrefixStore(f"fastdiff/{attempt}", store)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())

    def tell(self, name: str, data: Any) -> None:
        """For the others."""
        self.store.set(name, json.dumps(data))

    def hear(self, name: str) -> Any:
        """What one tells; waits for it."""
        return json.loads(self.store.get(name))

    def begin(self, job: Any, model_sha256: str) -> None:
        """Of rank 0, when its model is loaded."""
        self.tell("job", {"job": job, "versions": versions(), "model_sha256": model_sha256})

    def agree(self, hello: dict[str, Any]) -> None:
        """Raises ValueError if this process has other versions or weights than rank 0."""
        first = self.hear("job")
        refuse_other_versions(versions(), first["versions"], "rank 0")
        if hello["model_sha256"] != first["model_sha256"]:
            raise ValueError(f"the model of rank {self.rank} has other weights than that of rank 0")

    def make(
        self,
        units: Sequence[Any],
        todo: Sequence[int],
        runner: Runner,
        limits: Limits,
        on_progress: Callable[[Progress], None] | None,
    ) -> tuple[dict[int, str], dict[str, Throughput]]:
        """Make the units whose numbers are in `todo`, with the others. At rank 0, when all are done: why units could
        not be made, and what each rank did. Elsewhere this process' own."""
        began, mine, failed = time.monotonic(), Throughput(), {}
        while True:
            position = self.store.add("next", 1) - 1
            if position >= len(todo):
                break
            number, started = todo[position], time.monotonic()
            why = _attempt(runner, units[number], limits.failures)
            mine.seconds += time.monotonic() - started
            if why:
                failed[number] = why
                self.store.add("failed", 1)
            else:
                mine.units += 1
                self.store.add("made", 1)
            if on_progress is not None:
                seconds = time.monotonic() - began
                on_progress(self._progress(len(units), len(todo), position, seconds, mine))
        self.tell(f"end/{self.rank}", {"failed": list(failed.items()), "units": mine.units, "seconds": mine.seconds})
        if self.rank:
            return failed, {str(self.rank): mine}
        ends = [self.hear(f"end/{number}") for number in range(self.size)]
        return (
            {number: why for end in ends for number, why in end["failed"]},
            {str(k): Throughput(end["units"], end["seconds"]) for k, end in enumerate(ends)},
        )

    def _progress(self, units: int, todo: int, position: int, seconds: float, mine: Throughput) -> Progress:
        """Of all processes, but for the throughput."""
        made, lost = self.store.add("made", 0), self.store.add("failed", 0)
        waiting = max(0, todo - position - 1)
        return Progress(
            units=units,
            done=units - todo + made,
            made=made,
            given_up=lost,
            waiting=waiting,
            running=max(0, todo - made - lost - waiting),
            seconds=seconds,
            left=(todo - made - lost) * seconds / made if made else None,
            retries=0,
            deaths=0,
            copies=0,
            workers={str(self.rank): mine},
        )

    def finish(self, summary: Any) -> Any:
        """Rank 0 tells what came of it, the others hear it; nobody leaves before all have."""
        if self.rank == 0:
            self.tell("summary", summary)
        found = self.hear("summary")
        self.store.add("left", 1)
        while self.rank == 0 and self.store.add("left", 0) < self.size:  # it may hold the store
            time.sleep(0.05)
        return found


def _attempt(runner: Runner, unit: Any, tries: int) -> str:
    """Empty if it is made, else why not. Raises OSError for a full disk."""
    why = ""
    for _ in range(tries):
        try:
            runner.make(unit)
        except Exception as error:
            found = failure(error)
            if found["kind"] == "full":
                raise full_disk(found["text"]) from error
            why = f"{found['text']} ({tries} failures)"
        else:
            return ""
    return why
