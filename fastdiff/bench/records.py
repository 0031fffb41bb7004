"""The results of a suite as a file, and what became slower between two of them.

A file is {"suite", "machine", "rows"}; a row is {"name", "seconds": {"ours": {"median", "p20", "p80"}, ...},
"baseline"}, with whatever else its suite knows ("share" of the measured ceiling, "bytes", "flops", ...). "baseline"
names the entry of "seconds" that ours is compared with; without one there is no ratio. Convergence has "errors" instead
of rows: solver -> model calls -> error. What the benchmarks themselves write (`python benchmarks/bench_NAME.py
--benchmark-json FILE`, which is pytest-benchmark's form, or `--json FILE`) is read as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdiff.errors import expect
from fastdiff.files import replacing

Row = dict[str, Any]


def save(path: str | Path, suite: str, rows: Sequence[Row], **more: Any) -> None:
    """Write a file, whole or not at all, with the machine that it is from."""
    from fastdiff.cli.info import collect

    found = {"suite": suite, "machine": collect(), "rows": list(rows), **more}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def load(path: str | Path) -> dict[str, Any]:
    """A file that `save` or a benchmark wrote. Raises ValueError that names it if it is something else, OSError if it
    is not there."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    expect(isinstance(found, dict), f"{path} is no file of a benchmark")
    try:
        if "benchmarks" in found:  # pytest-benchmark's
            found["rows"] = [op_row(_op(entry), entry) for entry in found["benchmarks"]]
        elif "results" in found:
            found["rows"] = [solver_row(result) for result in found["results"]]
        speeds = _speeds(found)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no file of a benchmark of fastdiff") from error
    expect(len(speeds) > 0, f"{path} has no rows")
    return found


def _op(entry: Mapping[str, Any]) -> str:
    """The operator of a row of pytest-benchmark's, from the file of its test."""
    return Path(entry["fullname"].partition("::")[0]).stem.removeprefix("bench_")


def op_row(op: str, entry: dict[str, Any]) -> Row:
    """A row from one of pytest-benchmark's, whose extra_info is `fastdiff.bench.compare.Row.record()`."""
    info = entry["extra_info"]
    words = ["x".join(map(str, info["shape"])), info["dtype"], info["detail"], "backward" if info["backward"] else ""]
    heap = ", raised heap" if info.get("heap") == "raised" else ""
    return {
        "name": f"{op} {' '.join(word for word in words if word)}{heap}",
        "seconds": {name: info[name] for name in ("ours", "torch", "copy")},
        "baseline": "torch",
        "share": info["share"],
        "bytes": info["bytes"],
        "flops": info["flops"],
    }


def solver_row(result: dict[str, Any]) -> Row:
    """A row from one of bench_solvers.py's: a step of the C++ engine against diffusers' scheduler."""
    seconds = {
        {"cpu": "ours"}.get(name, name): {"median": 1e-6 * m, "p20": 1e-6 * low, "p80": 1e-6 * high}
        for name, (m, low, high) in result["microseconds_a_step"].items()
    }
    return {
        "name": f"{result['solver']} {'x'.join(map(str, result['shape']))}",
        "seconds": seconds,
        "baseline": "diffusers",
        "share": 1 / result["time_of_the_copy"],
    }


def ratio(row: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """(times as fast as the baseline, lowest, highest), the ends from the p20 and p80 of both; None without one."""
    theirs = row["seconds"].get(row.get("baseline"))
    if theirs is None:
        return None
    ours = row["seconds"]["ours"]
    return theirs["median"] / ours["median"], theirs["p20"] / ours["p80"], theirs["p80"] / ours["p20"]


@dataclass(frozen=True)
class Change:
    """One row in two files. before, after: (value, low, high) of the ratio to the baseline, of 1 / seconds where there
    is none, or of 1 / error of convergence. factor: after over before; below 1 is slower, or less accurate."""

    name: str
    before: tuple[float, float, float]
    after: tuple[float, float, float]

    @property
    def factor(self) -> float:
        """How many times as fast as before."""
        return self.after[0] / self.before[0]

    @property
    def slower(self) -> bool:
        """By more than the spread of both."""
        return self.after[2] < self.before[1]

    @property
    def faster(self) -> bool:
        """By more than the spread of both."""
        return self.after[1] > self.before[2]


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """The rows that both have, slowest change first. What is compared is the ratio to the baseline of the same run,
    which does not move with the machine's speed; seconds only where a row has no baseline. Raises ValueError that shows
    a row of each if they have none in common.
    """
    old, new = _speeds(before), _speeds(after)
    changes = [Change(name, old[name], speed) for name, speed in new.items() if name in old]
    examples = " and ".join(repr(next(iter(rows), "nothing")) for rows in (old, new))
    expect(len(changes) > 0, f"the two files have no row in common; they have {examples}")
    return sorted(changes, key=lambda change: change.factor)


ROUNDING = 0.01  # by which errors of convergence may differ from machine to machine


def _speeds(found: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """By name: how fast, or how accurate, with both ends."""
    speeds = {row["name"]: _speed(row) for row in found["rows"]}
    for solver, curve in found.get("errors", {}).items():
        for calls, error in curve.items():
            value = 1 / max(float(error), 1e-300)
            speeds[f"{solver}, {calls} calls"] = value, value * (1 - ROUNDING), value * (1 + ROUNDING)
    return speeds


def _speed(row: Mapping[str, Any]) -> tuple[float, float, float]:
    found = ratio(row)
    if found is not None:
        return found
    ours = row["seconds"]["ours"]
    return 1 / ours["median"], 1 / ours["p80"], 1 / ours["p20"]
