"""Which candidate computes a call on a GPU: by the table, by times taken before, or by timing at the first call.

FASTDIFF_TUNE=0: the table and defaults only. 1, the default: what the table lacks is timed. all: everything is timed
again. Timing ends when SHAPE_SECONDS are spent on the calls of a signature, or PROCESS_SECONDS in the process; what is
left over is timed by the next process, as times are kept in a file (kept_times.py).
"""

from __future__ import annotations

import functools
import importlib.metadata
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fastdiff.runtime import agreement, candidates, contents, environment, graphs
from fastdiff.runtime.candidates import TORCH, Candidate, Decision, Row
from fastdiff.runtime.graph_timer import GraphTimer, Timer
from fastdiff.runtime.kept_times import KeptTimes

SHAPE_SECONDS, PROCESS_SECONDS = 2.0, 30.0
BETTER = 0.97  # of the time of the preferred candidate: what is not clearly quicker does not take its place
_FATAL = ("CUDA error", "illegal memory access", "misaligned address", "launch failure")  # the device is lost


@dataclass
class Problem:
    """A call to choose for. candidates: in order of preference, at least one; the last resort is among them.

    key: of device, versions and signature; title: for the reader. row: of the table, for this architecture; nearest: a
    row of another one. absent: what cannot be a candidate here, with the reason; features: that rows ask for. make:
    arguments to time with; reference: torch's own results for them; oracle: the same in float64, None: there is none,
    and candidates are checked against the first.
    """

    key: str
    title: str
    device: torch.device
    candidates: list[Candidate]
    make: Callable[[], Any]
    reference: Callable[[Any], Any] | None = None
    oracle: Callable[[Any], Any] | None = None
    row: Row | None = None
    nearest: Row | None = None
    absent: dict[str, str] = field(default_factory=dict)
    features: dict[str, int] | None = None


def setting() -> str:
    """FASTDIFF_TUNE. Raises ValueError for another value than 0, 1 and all."""
    return str(environment.read("FASTDIFF_TUNE", "1"))


@dataclass
class Tuner:
    """Decides, and remembers. timer, clock: stand-ins for tests."""

    timer: Timer = field(default_factory=GraphTimer)
    clock: Callable[[], float] = time.perf_counter
    kept: KeptTimes = field(default_factory=KeptTimes)
    spent: float = 0.0  # seconds of timing, in this process
    _again: set[str] = field(default_factory=set)  # keys that are timed again, as FASTDIFF_TUNE=all asks
    _failed: dict[tuple[str, str], str] = field(default_factory=dict)  # (key, candidate): in a call
    _warned: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def decide(self, problem: Problem) -> Candidate:
        """The candidate to take now; one that is not settled where its choice has to wait."""
        names = [c.name for c in problem.candidates]
        failed = {name: self._failed[problem.key, name] for name in names if (problem.key, name) in self._failed}
        left = [c for c in problem.candidates if c.name not in failed]
        dropped = {**problem.absent, **failed}
        how = setting()
        table = problem.row if how != "all" else None
        by_name = {c.name: c for c in left}
        if len(left) == 1:
            return self._decided(problem, left[0], "the only one", dropped=dropped)
        if table is not None and table.decides(by_name):
            why = f"from the table ({table.measured}; {table.source})"
            return self._decided(problem, by_name[table.candidate], why, dropped=dropped)
        near = problem.row or problem.nearest
        default = by_name.get(near.candidate, left[0]) if near is not None else left[0]
        left = [default, *(c for c in left if c is not default)]
        if how == "0":
            return self._decided(problem, default, self._default("FASTDIFF_TUNE=0", near, default), dropped=dropped)
        waits = self._cannot_time(problem.device)
        if waits is None and not graphs.lock.acquire(blocking=False):
            waits = "another thread captures or replays a graph"
        if waits is not None:
            why = self._default(f"{waits}; timed at a later call", near, default)
            return self._decided(problem, default, why, dropped=dropped, settled=False)
        try:
            return self._by_time(problem, left, dropped, how, near)
        finally:
            graphs.lock.release()

    def drop(self, problem: Problem, name: str, error: BaseException) -> None:
        """A candidate failed in a call: it is not taken again for this signature. Warns once for each error."""
        reason = said(error)
        self._failed[problem.key, name] = reason
        self.warn(f"{problem.title.split()[0]}: {name} failed ({reason}); the next best candidate takes its place")

    def _by_time(
        self, problem: Problem, left: list[Candidate], dropped: dict[str, str], how: str, near: Row | None
    ) -> Candidate:  # fmt: skip
        entry = self.kept.find(problem.key)
        with self._lock:
            if how == "all" and problem.key not in self._again:
                self._again.add(problem.key)
                entry = {"seconds": {}, "dropped": {}}
        known = {c.name for c in left if c.name in entry["seconds"] or c.name in entry["dropped"]}
        why = "timed before"
        if len(known) < len(left):
            started = self.clock()
            said_why = self._take_times(problem, [c for c in left if c.name not in known], left[0], entry)
            took = self.clock() - started
            self.spent += took
            why = said_why or f"timed in {took:.2f} s"
            if entry["seconds"] or entry["dropped"]:
                self.kept.keep(problem.key, entry)
        names = {c.name for c in left}
        dropped |= {name: reason for name, reason in entry["dropped"].items() if name in names}
        seconds = {name: s for name, s in entry["seconds"].items() if name in names}
        left = [c for c in left if c.name not in dropped] or [c for c in left if c.name == TORCH] or left[:1]
        chosen = left[0]
        timed = [c for c in left if c.name in seconds]
        if timed:
            quickest = min(timed, key=lambda c: seconds[c.name])
            chosen = chosen if chosen.name in seconds else timed[0]
            chosen = quickest if seconds[quickest.name] < BETTER * seconds[chosen.name] else chosen
        else:
            why = self._default(why, near, chosen)
        return self._decided(problem, chosen, why, seconds=seconds, dropped=dropped)

    def _take_times(
        self, problem: Problem, left: list[Candidate], preferred: Candidate, entry: dict[str, dict[str, Any]]
    ) -> str | None:  # fmt: skip
        """Times and checks of those that are left, into `entry`; why not all are there, or None."""
        ends = self.clock() + min(SHAPE_SECONDS, PROCESS_SECONDS - self.spent)
        budget = f"the budget of {SHAPE_SECONDS:g} s a shape and {PROCESS_SECONDS:g} s a process is spent"
        if self.clock() >= ends:
            return budget
        with torch.no_grad():
            try:
                a = problem.make()
                exact = None if problem.oracle is None else problem.oracle(a)
                theirs = (problem.reference or preferred.run)(a)
                if not agreement.is_checkable(theirs):
                    return "results are not finite, so that nothing can be checked"
            except Exception as error:
                if is_fatal(error):
                    raise
                return f"candidates could not be checked: {said(error)}"
            for candidate in left:
                if self.clock() >= ends:
                    return f"timed in part: {budget}; the next process times the rest"
                if (wrong := self._time(problem, candidate, a, theirs, exact, entry["seconds"])) is not None:
                    entry["dropped"][candidate.name] = wrong
        return None

    def _time(
        self, problem: Problem, candidate: Candidate, a: Any, theirs: Any, exact: Any, seconds: dict[str, float]
    ) -> str | None:  # fmt: skip
        """Into `seconds`; or why the candidate is dropped."""
        try:
            if (wrong := agreement.disagreement(candidate.run(a), theirs, exact)) is not None:
                self.warn(f"{problem.title}: {candidate.name} is not taken, as {wrong}")
                return wrong
            with contents.noted():  # what is kept of weights is read by the timer's graph, as by those of calls
                seconds[candidate.name] = self.timer(lambda: candidate.run(a), problem.device)
        except Exception as error:
            if is_fatal(error):
                raise
            return said(error)
        return None

    def _cannot_time(self, device: torch.device) -> str | None:
        """Why nothing can be timed now, or None."""
        if device.type != self.timer.device_type:
            return f"calls on {device.type} are not timed"
        if torch.compiler.is_compiling():
            return "torch.compile traces the call"
        if graphs.capturing():
            return "a CUDA graph is being captured"
        return None

    def _default(self, why: str, near: Row | None, chosen: Candidate) -> str:
        if near is not None and near.candidate == chosen.name:
            return f"from the table of {near.architecture}, not measured here ({why})"
        return f"the default, not measured ({why})"

    def _decided(self, problem: Problem, chosen: Candidate, why: str, **options: Any) -> Candidate:
        found = Decision(problem.title, chosen.name, why, **options)
        candidates.keep(problem.key, found)
        return chosen if found.settled == chosen.settled else replace(chosen, settled=found.settled)

    def warn(self, text: str) -> None:
        """Once in the process for each text."""
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(f"fastdiff: {text}", stacklevel=4)


tuner = Tuner()


def is_fatal(error: BaseException) -> bool:
    """Whether the device is lost, so that no other candidate can work either."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "captur" in text:  # what a capture forbids, only it forbids
        return False
    lost = getattr(torch, "AcceleratorError", None)  # from PyTorch 2.8 on
    return (lost is not None and isinstance(error, lost)) or any(known in text for known in _FATAL)


def said(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@functools.cache
def versions() -> str:
    """Of what makes times differ, beside the device: the driver, torch, Triton and fastdiff."""
    found = [f"driver-{_driver()}", f"torch-{torch.__version__}"]
    for name in ("triton", "fastdiff"):
        try:
            found.append(f"{name}-{importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name}-none")
    return " ".join(found)


def _driver() -> str:
    """The driver's release on Linux, elsewhere the CUDA release that it is for."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
        return next(word for word in words if word[:1].isdigit())
    except (OSError, StopIteration):
        asked = getattr(torch._C, "_cuda_getDriverVersion", None)
        return str(asked()) if asked is not None else "none"
