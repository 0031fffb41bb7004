"""Worker processes on this machine, with a share of the cores each, or one GPU each."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from fastdiff.distributed.pools import Event, Unit

TOLD = 300  # characters of what a dead worker said last


@dataclass
class _Worker:
    process: subprocess.Popen[str]
    log: IO[bytes]


class Processes:
    """`count` workers. order: what each is told first, see `worker`. gpus: of this machine, worker k gets k modulo as
    many; 0 for none."""

    def __init__(self, order: Mapping[str, Any], count: int, *, gpus: int = 0) -> None:
        self.order, self.count, self.gpus = order, count, gpus
        self._workers: dict[str, _Worker] = {}
        self._events: queue.Queue[Event] = queue.Queue()
        self._started = 0

    def start(self) -> None:
        for _ in range(self.count):
            self.replace()

    def replace(self) -> None:
        number = self._started
        self._started += 1
        environment = dict(os.environ)
        threads = self.order.get("threads")
        if threads:
            environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        if self.gpus:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
            names = visible.split(",") if visible else [str(k) for k in range(self.gpus)]
            environment["CUDA_VISIBLE_DEVICES"] = names[number % len(names)]
        log = tempfile.TemporaryFile()  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, "-m", "fastdiff.distributed.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=log, env=environment, text=True, encoding="utf-8",
        )  # fmt: skip
        name = str(number)
        self._workers[name] = _Worker(process, log)
        threading.Thread(target=self._listen, args=(name,), daemon=True).start()
        self._say(name, self.order)

    def send(self, worker: str, unit: Unit) -> None:
        self._say(worker, unit)

    def events(self, seconds: float) -> list[Event]:
        found = []
        with suppress(queue.Empty):
            found.append(self._events.get(timeout=seconds))
            while True:
                found.append(self._events.get_nowait())
        return found

    def stop(self, worker: str) -> None:
        found = self._workers.get(worker)
        if found is not None:
            found.process.kill()

    def close(self) -> None:
        for worker in list(self._workers.values()):
            worker.process.kill()
        for worker in list(self._workers.values()):
            worker.process.wait()

    def _say(self, name: str, message: Any) -> None:
        worker = self._workers.get(name)
        if worker is None:
            return
        stream = worker.process.stdin
        assert stream is not None
        with suppress(OSError, ValueError):  # it died or was closed: the end of its output says so
            stream.write(json.dumps(message) + "\n")
            stream.flush()

    def _listen(self, name: str) -> None:
        worker = self._workers[name]
        stream = worker.process.stdout
        assert stream is not None
        for line in stream:
            try:
                ((what, data),) = json.loads(line).items()
            except ValueError:  # the last line of a worker that was killed while it wrote
                break
            self._events.put(Event(name, what, data))
        status = worker.process.wait()
        with suppress(OSError):
            worker.process.stdin.close()  # type: ignore[union-attr]
        del self._workers[name]
        self._events.put(Event(name, "died", f"worker {name} ended with status {status}{_last(worker.log)}"))


def _last(log: IO[bytes]) -> str:
    """What a worker said last, in one line."""
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - 2000))
    said = " ".join(log.read().decode(errors="replace").split())
    log.close()
    return f": ...{said[-TOLD:]}" if len(said) > TOLD else f": {said}" if said else ""
