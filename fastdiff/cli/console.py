"""What the commands share: the console, progress bars, machine-readable output."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# People read on the standard error, so that the standard output of --json stays clean.
console = Console(stderr=True, highlight=False)
EVERY = 10  # percent between two lines, where the output is no terminal


@dataclass
class _Task:
    description: str
    total: float | None
    completed: float
    started: float = field(default_factory=time.monotonic)
    said: int = 0  # tenths


class Bars:
    """Progress as bars on a terminal; elsewhere (a file, a pipe) as a line every 10%.

    counts: "12/50" beside the bar, else a percentage. period: seconds over which the time left is estimated.
    """

    def __init__(self, *, counts: bool = True, period: float = 30.0) -> None:
        columns: tuple[ProgressColumn, ...] = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn() if counts else TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, speed_estimate_period=period) if console.is_terminal else None
        self._tasks: list[_Task] = []
        self._ids: list[Any] = []

    def start(self) -> None:
        """Show the bars."""
        if self._bar is not None:
            self._bar.start()

    def stop(self) -> None:
        """Leave them as they are; nothing if they were not shown."""
        if self._bar is not None and self._bar.live.is_started:  # else it would print an empty line
            self._bar.stop()

    def add(self, description: str, total: float | None = None, completed: float = 0) -> int:
        """Another task; its number."""
        task = _Task(description, total, completed)
        task.said = _tenths(task)  # of a run that goes on
        self._tasks.append(task)
        if self._bar is not None:
            self._ids.append(self._bar.add_task(description, total=total, completed=completed))  # type: ignore[arg-type]
        return len(self._tasks) - 1

    def update(
        self, number: int, *, description: str | None = None, completed: float | None = None, total: float | None = None
    ) -> None:
        """What a task does now, how much is done, of how much; None as before."""
        task = self._tasks[number]
        task.description = task.description if description is None else description
        task.completed = task.completed if completed is None else completed
        task.total = task.total if total is None else total
        if self._bar is not None:
            self._bar.update(
                self._ids[number], description=task.description, completed=task.completed, total=task.total
            )
        elif _tenths(task) > task.said:
            task.said = _tenths(task)
            seconds = time.monotonic() - task.started
            console.print(f"{EVERY * task.said}%, {seconds:.0f} s: {task.description}", markup=False, soft_wrap=True)

    def advance(self, number: int, by: float = 1) -> None:
        """So much more is done."""
        self.update(number, completed=self._tasks[number].completed + by)


def _tenths(task: _Task) -> int:
    share = min(1.0, task.completed / task.total) if task.total else 0.0
    return int(100 / EVERY * share + 1e-9)


@contextmanager
def progress(*, counts: bool = True, period: float = 30.0) -> Iterator[Bars]:
    """Bars, or lines, while the block runs."""
    bars = Bars(counts=counts, period=period)
    bars.start()
    try:
        yield bars
    finally:
        bars.stop()


def show_messages() -> None:
    """What takes seconds, such as capturing a model, as lines on the console."""
    from fastdiff.runtime import telling

    telling.show(lambda text: console.print(f"{text}", markup=False, soft_wrap=True))


def say_if_busy() -> None:
    """A line where other programs keep the cores busy: threads that wait for each other then hold up themselves."""
    import torch

    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # of the last minute; Windows has none
    if threads > 1 and load > cores and os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
        text = f"this machine is busy (load {load:.1f} on {cores} cores); OMP_NUM_THREADS=1 may be faster"
        console.print(text, markup=False, soft_wrap=True)


def print_json(data: dict[str, Any]) -> None:
    """One JSON object on the standard output."""
    print(json.dumps(data, ensure_ascii=False))
