"""All candidates, tiles and plans of the operators on a GPU, measured within a budget: `fastdiff bench ops --sweep`.

Kernels are compiled first, in processes that run each once, so that one that hangs or breaks its device costs one
candidate. Then each is checked against float64 and timed in a CUDA graph: what a call would choose among in all cases
first, further tiles after that.
"""

from __future__ import annotations

import datetime
import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fastdiff.bench import warming
from fastdiff.bench.cases import Case
from fastdiff.bench.measured import Measured, MeasuredCase, Time
from fastdiff.bench.sweep_cases import cases, problem
from fastdiff.runtime import agreement, tuning
from fastdiff.runtime.candidates import Candidate, is_ours
from fastdiff.runtime.device import properties
from fastdiff.runtime.graph_timer import Timer
from fastdiff.runtime.tuning import Problem

MINUTES = 3.0
COMPILING = 0.5  # of the budget
MAX_JOBS = 16
Task = tuple[int, str, str]  # which of cases(), candidate, device


@dataclass
class _Planned:
    """A case, and the names of its candidates: those of a call, then others."""

    index: int
    part: str
    case: Case
    found: MeasuredCase
    rounds: tuple[list[str], list[str]]
    failed: dict[str, str] = field(default_factory=dict)


class DeviceLost(RuntimeError):
    """A kernel broke the device, so that nothing more can be measured in this process."""


def run(
    ops: Sequence[str], device: torch.device, *, minutes: float = MINUTES, jobs: int = 0, timer: Timer | None = None,
    clock: Callable[[], float] = time.monotonic, warm: Callable[..., dict[int, str]] = warming.warm,
    say: Callable[[str], object] = print, keep: Callable[[Measured], object] = lambda found: None,
) -> Measured:  # fmt: skip
    """What was measured in so many minutes; without names in `ops`, of all. What was not reached is said and left out.

    A KeyboardInterrupt, or a kernel that breaks the device, ends it: what is there by then is the result, and is not
    `complete`. keep: is given what there is after each case, not `complete` either, so that a process that is ended
    leaves it. jobs: processes that compile, by default as many as there are processors. timer, clock, warm: stand-ins
    for tests.
    """
    timer = timer or tuning.tuner.timer
    ends = clock() + 60 * minutes
    found = _head(device)
    found.complete = False
    planned: list[_Planned] = []
    try:
        planned = [_planned(i, part, case, device) for i, (part, case) in _chosen(ops)]
        say(f"{len(planned)} cases, {sum(len(names) for p in planned for names in p.rounds)} candidates")
        _compile(planned, device, warm, jobs, seconds=60 * minutes * COMPILING)
        found.ceilings = ceilings(device, timer)
        late = 0
        for p, names in [(p, p.rounds[r]) for r in (0, 1) for p in planned]:
            before = len(p.found.times)
            late += _measure(p, names, device, timer, clock, ends)
            if len(p.found.times) > before:
                found.cases = _measured(planned)
                keep(found)
        left = late + sum(why == warming.NOT_REACHED for p in planned for why in p.failed.values())
        found.complete = not left
        if left:
            say(f"{left} candidates were not reached in {minutes:g} minutes")
    except (KeyboardInterrupt, DeviceLost) as error:
        say(f"{'interrupted' if isinstance(error, KeyboardInterrupt) else error}: what is there by now is kept")
    found.cases = _measured(planned)
    return found


def ceilings(device: torch.device, timer: Timer, *, numbers: int = 1 << 27, side: int = 8192) -> dict[str, float]:
    """Bytes a second of a copy of so many halves, operations a second of a product of matrices, seconds of a launch."""
    x = torch.empty(numbers, dtype=torch.float16, device=device)
    y, one = torch.empty_like(x), torch.zeros(1, device=device)
    m = torch.randn(side, side, dtype=torch.float16, device=device)
    out = torch.empty_like(m)
    y.copy_(x)
    torch.mm(m, m, out=out)
    copy = timer(lambda: y.copy_(x), device)
    product = timer(lambda: torch.mm(m, m, out=out), device)
    return {"copy": 4 * numbers / copy, "product": 2 * side**3 / product, "launch": timer(one.zero_, device)}


def compile_one(task: Task) -> None:
    """In a process of its own: run a candidate once, so that its kernels are in Triton's cache."""
    index, name, where = task
    found, others = _problem(*cases()[index], where)
    candidate = next(c for c in [*found.candidates, *others] if c.name == name)
    with torch.no_grad():
        candidate.run(found.make())
    if found.device.type == "cuda":
        torch.cuda.synchronize(found.device)


@functools.lru_cache(1)
def _problem(part: str, case: Case, where: str) -> tuple[Problem, list[Candidate]]:
    return problem(part, case, where)


def _chosen(ops: Sequence[str]) -> list[tuple[int, tuple[str, Case]]]:
    return [(i, each) for i, each in enumerate(cases()) if not ops or each[1].op in ops]


def _measured(planned: Sequence[_Planned]) -> list[MeasuredCase]:
    return [p.found for p in planned if p.found.times]


def _head(device: torch.device) -> Measured:
    known = properties(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = dict(word.split("-", 1) for word in tuning.versions().split())
    return Measured(
        name, known.exact, known.multiprocessors, known.l2_bytes, datetime.date.today().isoformat(),
        "fastdiff bench ops --sweep", versions,
    )  # fmt: skip


def _planned(index: int, part: str, case: Case, device: torch.device) -> _Planned:
    found, others = _problem(part, case, str(device))
    measured = MeasuredCase(
        case.op, case.shape, case.type_name, case.detail, part, bytes=case.bytes, flops=case.flops,
        features=found.features,
    )  # fmt: skip
    rounds = [c.name for c in found.candidates], [c.name for c in others]
    return _Planned(
        index, part, case, measured, rounds if not part else ([], [*rounds[0], *rounds[1]]), measured.failed
    )


def _compile(
    planned: list[_Planned], device: torch.device, warm: Callable[..., dict[int, str]], jobs: int, seconds: float
) -> None:  # fmt: skip
    of = [(p, name) for r in (0, 1) for p in planned for name in p.rounds[r] if is_ours(name)]
    tasks: list[Task] = [(p.index, name, str(device)) for p, name in of]
    jobs = jobs or min(MAX_JOBS, os.cpu_count() or 1)
    for at, reason in warm(compile_one, tasks, jobs=jobs, seconds=seconds).items():
        planned_case, name = of[at]
        planned_case.failed[name] = reason


def _measure(
    planned: _Planned, names: list[str], device: torch.device, timer: Timer, clock: Callable[[], float], ends: float
) -> int:  # fmt: skip
    """Times of these candidates, into the case; how many the time did not suffice for."""
    wanted = [name for name in names if name not in planned.failed]
    if not wanted or clock() >= ends:
        return len(wanted)
    found, others = _problem(planned.part, planned.case, str(device))
    by_name = {c.name: c for c in [*found.candidates, *others]}
    case = planned.found
    with torch.no_grad():
        try:
            a = found.make()
            exact = None if found.oracle is None else found.oracle(a)
            theirs = (found.reference or by_name[wanted[0]].run)(a)
            if not agreement.is_checkable(theirs):
                raise ValueError("results are not finite")
        except Exception as error:
            _survived(error)
            case.failed.update(dict.fromkeys(wanted, f"could not be checked: {tuning.said(error)}"))
            return 0
        for at, name in enumerate(wanted):
            if clock() >= ends:
                return len(wanted) - at
            try:
                _time(case, by_name[name], (a, theirs, exact), device, timer)
            except Exception as error:
                _survived(error, str(case), name)
                case.failed[name] = tuning.said(error)
    return 0


def _time(case: MeasuredCase, candidate: Candidate, given: Any, device: torch.device, timer: Timer) -> None:
    a, theirs, exact = given
    right = agreement.compared(candidate.run(a), theirs, exact)
    if right.why is not None:
        case.failed[candidate.name] = right.why
        return
    microseconds = 1e6 * timer(lambda: candidate.run(a), device)
    case.times[candidate.name] = Time(
        round(microseconds, 3), float(f"{right.error:.3g}"), float(f"{right.allowed:.3g}")
    )


def _survived(error: Exception, *where: str) -> None:
    """Raises DeviceLost if nothing can be measured after this error."""
    if tuning.is_fatal(error):
        raise DeviceLost(f"{' '.join(where)}: the device is lost ({tuning.said(error)})") from error
