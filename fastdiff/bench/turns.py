"""Engines timed against each other, each in a process of its own.

Engines that share a process hold each other up: the waiting threads of one's OpenMP spin on the cores that the other
needs, and threads inherit the binding of the thread that starts them. So every engine gets a process that knows of no
binding, and only one of them works at a time.
"""

from __future__ import annotations

import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import torch

from fastdiff.bench.timing import timed

# Variables that bind threads to cores. Threads of any library inherit the binding of the one that starts them.
BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
ENDING = 30.0  # seconds that a process may take to end
REST = 0.05  # seconds between two turns, in which the threads of the engine before stop waiting and sleep
LEAST = 0.3  # seconds of a turn; a call that takes longer is made once

Answer = dict[str, Any]


class Worker:
    """A process that runs `serve`. answer: what it said of its preparation, {"failed": why} if that failed.

    Raises RuntimeError that names the command if the process ends without an answer.
    """

    def __init__(self, command: Sequence[str], *, wait: bool = True) -> None:
        self.command = list(command)
        self.answer: Answer = {}
        with _every_core():
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=unbound(os.environ)
            )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=_copy_lines, args=(self._process.stdout, self._lines), daemon=True)
        self._reader.start()
        if wait:
            self.prepared()

    def prepared(self, seconds: float | None = None) -> Answer:
        """The answer of the preparation, {"failed": why} if it takes longer than that; the process then ends."""
        if not self.answer:
            found = self._within(seconds)
            self.answer = found or {"failed": f"not ready within {seconds:.0f} s"}
            if found is None:
                self._process.kill()
        return self.answer

    def turn(self) -> Answer:
        """{"seconds": per call, after one that is not timed, "peak": bytes of memory so far}."""
        return self.ask("turn")

    def ask(self, what: str, seconds: float | None = None) -> Answer:
        """What the process answers to a word that it knows. Raises TimeoutError after so many seconds, and RuntimeError
        that names the command if it ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{what}\n")
            self._process.stdin.flush()
        except OSError as error:
            raise RuntimeError(self._ended()) from error
        found = self._within(seconds)
        if found is None:
            self._process.kill()
            raise TimeoutError(f"no answer to {what!r} within {seconds:.0f} s")
        return found

    def close(self) -> None:
        """End the process, which may still be at work on something that nobody waits for."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):  # of what was written to a process that ended
            self._process.stdin.close()
        try:
            self._process.wait(ENDING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(ENDING)  # a process that it started may hold the pipe
        if not self._reader.is_alive():
            self._process.stdout.close()

    def _within(self, seconds: float | None) -> Answer | None:
        """The next answer, None if there is none within the time."""
        try:
            line = self._lines.get(timeout=None if seconds is None else max(0.0, seconds))
        except queue.Empty:
            return None
        if not line:
            raise RuntimeError(self._ended())
        return json.loads(line)  # type: ignore[no-any-return]

    def _ended(self) -> str:
        return f"{' '.join(self.command[:8])} ... ended with status {self._process.wait()}"


def _copy_lines(stream: TextIO, lines: queue.SimpleQueue[str]) -> None:
    """All lines, and an empty one at the end, so that a line can be waited for as long as wanted, on any system."""
    with suppress(ValueError):  # closed meanwhile
        for line in stream:
            lines.put(line)
    lines.put("")


def serve(
    prepare: Callable[[], tuple[Callable[[], object], Answer]],
    *,
    device: torch.device | str = "cpu",
    more: Mapping[str, Callable[[], Answer]] | None = None,
) -> None:
    """Be a worker: prepare() -> (the call to time, what to say first). Whatever else is printed goes to stderr.

    device: where the call computes, for its time and the peak of its memory. more: answers to further words; an error
    in one is answered as {"failed": why}.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: Answer) -> None:
        channel.write(json.dumps(answer) + "\n")
        channel.flush()

    try:
        call, first = prepare()
    except Exception as error:  # said by the other side, which knows whether it may go on without this engine
        say({"failed": f"{type(error).__name__}: {error}"[:300]})
        return
    say(first)
    for line in sys.stdin:
        if line.strip() == "turn":
            say({"seconds": seconds_a_call(call, device), "peak": peak(device)})
            continue
        try:
            say((more or {})[line.strip()]())
        except Exception as error:
            say({"failed": f"{type(error).__name__}: {error}"[:300]})


def seconds_a_call(call: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Of as many calls as take `LEAST` seconds, after one that is not timed."""
    call()  # as in a sampling loop, where the call before was the same engine's
    calls, seconds = 0, 0.0
    while calls == 0 or seconds < LEAST:
        number = 1 if not calls else max(1, math.ceil((LEAST - seconds) * calls / max(seconds, 1e-9)))
        with timed(device) as elapsed:
            for _ in range(number):
                call()
        calls, seconds = calls + number, seconds + elapsed.seconds
    return seconds / calls


def take_turns(commands: Mapping[str, Sequence[str]], *, rounds: int, together: bool = True) -> dict[str, Answer]:
    """What each command's worker said first, with {"all": the seconds of its turns, "peak": bytes}, or "failed".

    Every round has a turn of each. together: all processes are there until the end, and sleep while others work; else
    each ends before the next begins and is started again in the next round, which takes less memory and more time.
    Raises RuntimeError if a process dies.
    """
    results: dict[str, Answer] = {}
    workers: dict[str, Worker] = {}
    try:
        for number in range(rounds):
            for name, command in commands.items():
                if "failed" in results.get(name, {}):
                    continue
                if name not in workers:
                    workers[name] = Worker(command)
                    result = results.setdefault(name, {**workers[name].answer, "all": [], "peak": 0})
                    if "failed" in workers[name].answer:
                        result["failed"] = workers[name].answer["failed"]
                        workers.pop(name).close()
                        continue
                if number or not together:
                    _turn(workers[name], results[name])
                if not together:
                    workers.pop(name).close()
            if together and number == 0:  # the first round is after all preparations
                for name, worker in workers.items():
                    _turn(worker, results[name])
    finally:
        for worker in workers.values():
            worker.close()
    return results


def _turn(worker: Worker, result: Answer) -> None:
    time.sleep(REST)
    said = worker.turn()
    result["all"].append(said["seconds"])
    result["peak"] = max(result["peak"], said["peak"])


def unbound(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what binds threads to cores."""
    return {name: value for name, value in environment.items() if name not in BINDING}


@contextmanager
def _every_core() -> Iterator[None]:
    """A process that is started in the block may run on every core, where variables had bound this one's thread.

    Without such a variable the cores of this thread are somebody's choice (taskset), and stay.
    """
    bound = any(name in os.environ for name in BINDING)
    if not bound or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # the kernel leaves out those that this container lacks
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def peak(device: torch.device | str = "cpu") -> int:
    """The most memory that this process has had, in bytes; on a GPU what its tensors had of the GPU's."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):  # unlike getrusage's it has nothing of the process that started this one
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    import resource

    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else 1024 * found


def available_memory() -> int | None:
    """Bytes that processes may take without swapping, None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return None
