"""Whole models within a time, as `fastdiff bench models --device cuda` measures them: besides the seconds of a call
also those of the first call, of another resolution, of a sampling loop, memory, and the kernels' shares.

What compiles is prepared first, for all rows at a time, so that it disturbs no measurement; its first call is slower
for that. Then the rows follow each other, with one process that works at a time. What does not fit into the time is
left out, and said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastdiff.bench.timing import spread
from fastdiff.bench.turns import Answer, Worker

COMPILING = 0.5  # of the time, at most, for what compiles
LEAST = 20.0  # seconds: a row is not begun with less
MORE = ("launched", "loop", "other", "shares")  # what fastdiff's process is asked besides its turns
Command = Callable[[str, str], Sequence[str]]


@dataclass
class Budget:
    """Seconds that all may take."""

    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until it ends; not less than 0."""
        return max(0.0, self.started + self.seconds - time.monotonic())


def measure(rows: Sequence[str], names: Sequence[str], command: Command, budget: Budget, rounds: int) -> list[Answer]:
    """A result a row, in order: {"row", "against", "engines": {name: ...}, "left_out": [what and why]}.

    command(row, engine) starts a worker; "expected" makes what the others are checked against. Raises RuntimeError if
    fastdiff's or eager's result is wrong: no row without.
    """
    found: dict[str, Answer] = {row: {"row": row, "engines": {}, "left_out": []} for row in rows}
    workers: dict[tuple[str, str], Worker] = {}
    try:
        for row in rows:
            workers[row, "expected"] = Worker(command(row, "expected"), wait=False)
        for row in rows:
            said = workers[row, "expected"].prepared(budget.left)
            workers.pop((row, "expected")).close()
            if "failed" in said:
                found[row]["left_out"].append(f"all: {said['failed']}")
            found[row]["against"] = said.get("against", "")
        begun = [row for row in rows if found[row]["against"]]
        for row in begun if "compile" in names else ():
            workers[row, "compile"] = Worker(command(row, "compile"), wait=False)
        until = budget.left - COMPILING * budget.seconds
        for row in begun if "compile" in names else ():
            said = workers[row, "compile"].prepared(budget.left - until)
            if "failed" in said:
                found[row]["left_out"].append(f"compile: {said['failed']}")
                workers.pop((row, "compile")).close()
        for row in begun:
            if budget.left < LEAST:
                found[row]["left_out"].append("all: the time was up")
            else:
                compiled = workers.pop((row, "compile"), None)
                _row(found[row], names, compiled, command, budget, rounds)
    finally:
        for worker in workers.values():
            worker.close()
    return [found[row] for row in rows]


def _row(
    result: Answer, names: Sequence[str], compiled: Worker | None, command: Command, budget: Budget, rounds: int
) -> None:
    row, workers = result["row"], {} if compiled is None else {"compile": compiled}
    try:
        for name in ("fastdiff", "eager"):
            if name in names:
                workers[name] = Worker(command(row, name), wait=False)
                said = workers[name].prepared(budget.left)
                if "failed" in said:
                    if said["failed"].startswith("ValueError"):  # of the check
                        raise RuntimeError(f"{row}: {name}: {said['failed']}")
                    result["left_out"].append(f"{name}: {said['failed']}")
                    workers.pop(name).close()
        for name, worker in workers.items():
            result["engines"][name] = {**worker.answer, "all": [], "peak": 0}
        for _ in range(rounds):
            for name, worker in workers.items():
                said = worker.ask("turn", max(1.0, budget.left))
                result["engines"][name]["all"].append(said["seconds"])
                result["engines"][name]["peak"] = max(result["engines"][name]["peak"], said["peak"])
        for name, worker in workers.items():
            result["engines"][name].update(vars(spread(result["engines"][name]["all"])))
            _more(result, name, worker, budget)
    except TimeoutError as error:
        result["left_out"].append(f"the rest: {error}")
        result["engines"] = {name: found for name, found in result["engines"].items() if found["all"]}
        for found in result["engines"].values():
            found.update(vars(spread(found["all"])))
    finally:
        for worker in workers.values():
            worker.close()


def _more(result: Answer, name: str, worker: Worker, budget: Budget) -> None:
    """What a process tells besides its turns."""
    for what in MORE if name == "fastdiff" else ("shares",):
        if budget.left < 1:
            result["left_out"].append(f"{name}, {what}: the time was up")
            continue
        said = worker.ask(what, budget.left)
        if "failed" in said:
            result["left_out"].append(f"{name}, {what}: {said['failed']}")
        elif said:
            result["engines"][name][what] = said


def columns(result: Answer) -> dict[str, Any]:
    """The numbers of a row by their headings; what was not measured is None."""
    engines: dict[str, Any] = result["engines"]
    ours, eager, compiled = (engines.get(name, {}) for name in ("fastdiff", "eager", "compile"))

    def over(a: Any, b: Any) -> float | None:
        return a / b if a and b else None

    loop = ours.get("loop", {}).get("seconds")
    return {
        "eager, ms": _ms(eager.get("median")),
        "compile, ms": _ms(compiled.get("median")),
        "launched, ms": _ms(ours.get("launched", {}).get("seconds")),
        "fastdiff, ms": _ms(ours.get("median")),
        "over eager": over(eager.get("median"), ours.get("median")),
        "over compile": over(compiled.get("median"), ours.get("median")),
        "error": ours.get("error"),
        "eager's": eager.get("error"),
        "first call, s": ours.get("first"),
        "compile's, s": compiled.get("first"),
        "other size, s": ours.get("other", {}).get("seconds"),
        "memory over eager": over(ours.get("peak"), eager.get("peak")),
        "20 steps over 20 calls": over(loop, 20 * ours["median"]) if ours.get("median") else None,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def table(result: Answer, heading: str) -> str:
    """One row, for people."""
    lines = [f"{result['row']}: {heading}, checked against {result.get('against') or 'nothing'}"]
    lines += [f"  {name:<24} {value:.3g}" for name, value in columns(result).items() if value is not None]
    for name, found in result["engines"].items():
        shares = found.get("shares")
        if shares:
            kinds = ", ".join(f"{kind} {100 * share:.0f}%" for kind, share in shares["kinds"].items())
            lines.append(f"  kernels of {name}: {1e3 * shares['seconds']:.3g} ms: {kinds}")
            lines += [
                f"    {100 * each['share']:4.1f}%  {each['calls']:4d} calls  {each['name'][:90]}"
                for each in shares["kernels"][:5]
            ]
    lines += [f"  left out: {what}" for what in result["left_out"]]
    return "\n".join(lines)


def as_row(result: Answer, device: str, dtype: str) -> dict[str, Any] | None:
    """As `fastdiff bench` keeps it; None where fastdiff was not measured. The baseline is the fastest of the others."""
    engines = result["engines"]
    if "median" not in engines.get("fastdiff", {}):
        return None
    seconds = {
        {"fastdiff": "ours"}.get(name, name): {key: found[key] for key in ("median", "p20", "p80")}
        for name, found in engines.items()
    }
    launched = engines["fastdiff"].get("launched")
    if launched:
        seconds["launched"] = dict.fromkeys(("median", "p20", "p80"), launched["seconds"])
    others = [name for name in ("compile", "eager") if name in seconds]
    return {
        "name": f"{result['row']} {dtype} {device.partition(':')[0]}",
        "seconds": seconds,
        "baseline": min(others, key=lambda name: seconds[name]["median"]) if others else None,
        "columns": columns(result),
        "engines": engines,
        "left_out": result["left_out"],
    }
