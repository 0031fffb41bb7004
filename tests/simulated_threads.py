"""Parts of a program on a GPU as threads of which one runs at a time, in a random order, and their barriers."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any


class Stuck(Exception):
    """Everybody waits, and nothing is on its way."""


class Scheduler:
    """Threads of which one runs at a time, and copies on their way, in an order drawn at random."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._turn = threading.Condition()
        self._running: int | None = None
        self._waiting: dict[int, Callable[[], bool]] = {}  # threads that do not run, and whether they may go on
        self._copies: list[Callable[[], None]] = []
        self.error: BaseException | None = None

    def later(self, copy: Callable[[], None]) -> None:
        """Something that the device does by itself, at some time."""
        self._copies.append(copy)

    def run(self, parts: list[Callable[[], None]]) -> None:
        """All of them, to their ends. Raises what one of them raises."""
        threads = []
        for index, part in enumerate(parts):
            self._waiting[index] = lambda: True
            threads.append(threading.Thread(target=self._one, args=(index, part), daemon=True))
        for thread in threads:
            thread.start()
        with self._turn:
            self._next()
        for thread in threads:
            thread.join(timeout=120)
            assert not thread.is_alive()
        if self.error is not None:
            raise self.error
        while self._copies:
            self._copies.pop(self.random.randrange(len(self._copies)))()

    def wait(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Let others run, and go on some time after `ready`."""
        me = self._running
        assert me is not None
        with self._turn:
            self._waiting[me] = ready
            self._next()
            self._turn.wait_for(lambda: self._running == me or self.error is not None)
            if self.error is not None:
                raise SystemExit

    def _one(self, index: int, part: Callable[[], None]) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._running == index or self.error is not None)
        try:
            if self.error is None:
                part()
        except SystemExit:
            pass
        except BaseException as error:
            self.error = self.error or error
        with self._turn:
            self._next()

    def _next(self) -> None:
        self._running = None
        while self.error is None and self._waiting:
            able = [index for index, ready in self._waiting.items() if ready()]
            choices: list[Any] = [*able, *self._copies]
            if not choices:
                self.error = Stuck(f"{len(self._waiting)} parts wait")
                break
            choice = self.random.choice(choices)
            if isinstance(choice, int):
                self._running = choice
                del self._waiting[choice]
                break
            self._copies.remove(choice)
            choice()
        self._turn.notify_all()


class Barrier:
    """An mbarrier: a phase ends when all have arrived and all bytes that are expected have come."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.count, self.phase = scheduler, 0, 0

    def init(self, count: int) -> None:
        self.count = self.pending = count
        self.bytes = 0

    def arrive(self, count: int = 1, expected: int = 0) -> None:
        self.pending -= count
        self.bytes += expected
        assert self.pending >= 0, "more arrivals than the phase has"
        self._settle()

    def came(self, received: int) -> None:
        self.bytes -= received
        self._settle()

    def _settle(self) -> None:
        if self.pending == 0 and self.bytes == 0:
            self.phase, self.pending = self.phase + 1, self.count

    def wait(self, parity: int) -> None:
        assert parity in (0, 1)
        self.scheduler.wait(lambda: self.phase & 1 != parity)
