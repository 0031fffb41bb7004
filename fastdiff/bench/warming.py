"""Tasks in processes of their own, such as compiling a kernel and running it once: one that hangs or breaks its device
is ended, and the others go on."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from fastdiff.runtime.tuning import is_fatal, said

Task = TypeVar("Task")

NOT_REACHED = "not compiled within the budget"
MAX_STILLBORN = 3  # processes that end before their first task


@dataclass
class _Worker:
    """ready: it has said that it takes tasks. task: which it has, since when."""

    process: BaseProcess
    connection: Connection
    ready: bool = False
    task: int | None = None
    since: float = 0.0

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def warm(
    do: Callable[[Task], object], tasks: Sequence[Task], *, jobs: int, seconds: float, each: float = 30.0
) -> dict[int, str]:  # fmt: skip
    """do(task) for every task in order, in `jobs` processes at most; why one did not end well, by its place.

    do: a function of a module, which processes find by its name. seconds: for all; each: for one. No process is left
    behind, whatever happens.
    """
    pool = _Pool(do, tasks, each)
    ends = time.monotonic() + seconds
    try:
        while (pool.waiting or pool.busy()) and time.monotonic() < ends and pool.stillborn < MAX_STILLBORN:
            pool.fill(jobs)
            pool.collect(min(ends, time.monotonic() + 1.0))
        unfinished = [*pool.waiting, *(worker.task for worker in pool.busy())]
        return {**pool.failed, **{at: NOT_REACHED for at in unfinished if at is not None}}
    finally:
        for worker in pool.workers:
            worker.end()


class _Pool(Generic[Task]):
    def __init__(self, do: Callable[[Task], object], tasks: Sequence[Task], each: float) -> None:
        self._do, self._tasks, self._each = do, tasks, each
        self.waiting = list(reversed(range(len(tasks))))
        self.workers: list[_Worker] = []
        self.failed: dict[int, str] = {}
        self.stillborn = 0

    def busy(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.task is not None]

    def fill(self, jobs: int) -> None:
        """As many processes as there are tasks for, and a task for each that is ready."""
        while len(self.workers) < min(jobs, len(self.waiting) + len(self.busy())):
            self.workers.append(_start(self._do))
        for worker in self.workers:
            if worker.ready and worker.task is None and self.waiting:
                worker.task, worker.since = self.waiting.pop(), time.monotonic()
                worker.connection.send(self._tasks[worker.task])

    def collect(self, until: float) -> None:
        """Answers of those that have one by then; processes that are lost or late are ended."""
        by_connection = {
            worker.connection: worker for worker in self.workers if worker.task is not None or not worker.ready
        }
        ready = wait(list(by_connection), timeout=max(0.0, until - time.monotonic()))
        for connection, worker in by_connection.items():
            if connection in ready:
                self._answer(worker)
            elif worker.task is not None and time.monotonic() - worker.since > self._each:
                self._lose(worker, f"it hung for {self._each:g} s")

    def _answer(self, worker: _Worker) -> None:
        try:
            reason, usable = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(5)
            self._lose(worker, f"its process ended with status {worker.process.exitcode}")
            return
        if not worker.ready:
            worker.ready = True
            return
        if not usable:
            self._lose(worker, reason)
            return
        if reason is not None and worker.task is not None:
            self.failed[worker.task] = reason
        worker.task = None

    def _lose(self, worker: _Worker, reason: str) -> None:
        self.stillborn += not worker.ready
        if worker.task is not None:
            self.failed[worker.task] = reason
        self.workers.remove(worker)
        worker.end()


def _start(do: Callable[[Any], object]) -> _Worker:
    context = multiprocessing.get_context("spawn")  # torch's threads and devices do not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, do), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _serve(connection: Connection, do: Callable[[Any], object]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    connection.send((None, True))
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        reason, usable = None, True
        try:
            do(task)
        except Exception as error:
            reason, usable = said(error), not is_fatal(error)
        connection.send((reason, usable))
