"""The results of a suite as a file, and what became slower between two of them.

A file is {"suite", "machine", "rows"}; a row is {"name", "seconds": {"ours": {"median", "p20", "p80"}, ...},
"baseline"}, with whatever else its suite knows ("share" of the measured ceiling, "bytes", "flops", ...). "baseline"
names the entry of "seconds" that ours is compared with; without one there is no ratio.
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
    """A file that `save` wrote. Raises ValueError that names it if it is something else, OSError if it is not there."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    good = isinstance(found, dict) and isinstance(found.get("rows"), list)
    good = good and all(isinstance(row, dict) and {"name", "seconds"} <= row.keys() for row in found["rows"])
    expect(good, f"{path} is no file of a benchmark")
    return found


def ratio(row: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """(times as fast as the baseline, lowest, highest), the ends from the p20 and p80 of both; None without one."""
    theirs = row["seconds"].get(row.get("baseline"))
    if theirs is None:
        return None
    ours = row["seconds"]["ours"]
    return theirs["median"] / ours["median"], theirs["p20"] / ours["p80"], theirs["p80"] / ours["p20"]


@dataclass(frozen=True)
class Change:
    """One row in two files. before, after: (value, low, high) of the ratio to the baseline, or of 1 / seconds where
    there is none. factor: after over before; below 1 is slower."""

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
    which does not move with the machine's speed; seconds only where a row has no baseline. Raises ValueError for no
    common row.
    """
    old = {row["name"]: row for row in before["rows"]}
    changes = [
        Change(row["name"], _speed(old[row["name"]]), _speed(row)) for row in after["rows"] if row["name"] in old
    ]
    expect(len(changes) > 0, "the two files have no row in common")
    return sorted(changes, key=lambda change: change.factor)


def _speed(row: Mapping[str, Any]) -> tuple[float, float, float]:
    found = ratio(row)
    if found is not None:
        return found
    ours = row["seconds"]["ours"]
    return 1 / ours["median"], 1 / ours["p80"], 1 / ours["p20"]
