"""The tables of the choice on GPUs, from measured files: who computes a class of shapes, and tiles of attention.

A time counts if its results were checked and right, and if there is such a candidate. Of the same case in several files
the newest counts. Everything that does not count is said, with the reason.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from fastdiff.bench.measured import Measured, MeasuredCase
from fastdiff.runtime.candidates import Row, family, is_ours
from fastdiff.runtime.device import tables_of
from fastdiff.runtime.shape_classes import Bounds, bounds

# Launched singly, a kernel of ours pays more Python than PyTorch's. So such times count only where ours is ahead all
# the same, clearly, and calls are so long that launches hide behind the kernels before them.
LAUNCHED_LEAST, LAUNCHED_AHEAD = 50.0, 0.75
NEAR = 1.05  # of the quickest tile of a case: tiles within it are worth timing
SAID = 4  # times in a row's text

Numbers = tuple[int, int, int, int, bool]  # queries, keys, warps, stages; dk and dv apart
_TILE = re.compile(r"triton (\d+)x(\d+)/(\d+)/(\d+)( apart)?")
_PARTS = {"": "forward", "dq": "dq", "dkv": "dkv"}  # of attention, by kernel

Exists = Callable[[MeasuredCase, Measured], "set[str] | None"]


class Tables(NamedTuple):
    """rows: of who computes. tiles: of attention, by (architecture, kind, kernel), for classes of shapes. timed: tiles
    of the forward pass to be timed by (architecture, kind), each with the widest head that it was right for. left_out:
    what did not count, in words."""

    rows: list[Row]
    tiles: dict[tuple[str, str, str], list[tuple[Bounds, Numbers]]]
    timed: dict[tuple[str, str], list[tuple[int, Numbers]]]
    left_out: list[str]


def make(files: Iterable[Measured], exists: Exists) -> Tables:
    """exists(case, file): names of the candidates that there are for a case, or None where the case is unknown."""
    left_out: list[str] = []
    classes: dict[tuple[str, ...], dict[Bounds, list[tuple[MeasuredCase, Measured]]]] = defaultdict(dict)
    for case, file in _newest(files):
        if case.features is None:
            continue
        known = exists(case, file)
        if known is None:
            left_out.append(f"{case}: a sweep has no such case")
            continue
        counted = _counted(case, known, left_out)
        key = (case.op, file.architecture, case.kind, case.part)
        classes[key].setdefault(bounds(case.op, case.features), []).append((counted, file))
    found = Tables([], {}, {}, left_out)
    for (op, architecture, kind, part), by_bounds in sorted(classes.items()):
        has_tiles = op == "attention" and part in _PARTS
        if has_tiles and (serves := tables_of(architecture)) != architecture:
            left_out.append(f"tiles of attention on {architecture}: it has those of {serves}")
            has_tiles = False
        for limits, cases in sorted(by_bounds.items()):
            if part == "" and (row := _row(op, architecture, kind, limits, cases)) is not None:
                found.rows.append(row)
            in_graphs = [case for case, _ in cases if case.graph]
            if has_tiles and (tile := _quickest_tile(in_graphs)) is not None:
                found.tiles.setdefault((architecture, kind, _PARTS[part]), []).append((limits, tile))
        if has_tiles and part == "":
            every = [case for cases in by_bounds.values() for case, _ in cases]
            if timed := _worth_timing(every):
                found.timed[architecture, kind] = timed
    return found


def numbers_of(name: str) -> Numbers | None:
    """Of a candidate that is a tile of attention, as "triton 128x64/8/3"; None for others."""
    found = _TILE.fullmatch(name)
    if found is None:
        return None
    m, n, warps, stages = map(int, found.groups()[:4])
    return m, n, warps, stages, found.group(5) is not None


def _newest(files: Iterable[Measured]) -> list[tuple[MeasuredCase, Measured]]:
    """Each case of a device once."""
    found: dict[tuple[object, ...], tuple[MeasuredCase, Measured]] = {}
    for file in sorted(files, key=lambda file: file.date):
        for case in file.cases:
            found[file.architecture, str(case), case.graph] = case, file
    return list(found.values())


def _counted(case: MeasuredCase, known: set[str], left_out: list[str]) -> MeasuredCase:
    """The case with the times that count."""
    usable = dict(case.usable())
    times = {name: time for name, time in case.times.items() if name in usable and name in known}
    for name, time in case.times.items():
        if name not in times:
            left_out.append(f"{case}, {name}: {time.fault if name not in usable else 'there is no such candidate'}")
    return MeasuredCase(**{**vars(case), "times": times})


def _ahead_launched(case: MeasuredCase, chosen: str) -> bool:
    """Whether a kernel of ours is the quickest beyond doubt, though launches were timed with it."""
    ours = case.times[chosen].microseconds
    theirs = min(time.microseconds for name, time in case.times.items() if not is_ours(name))
    return is_ours(chosen) and LAUNCHED_LEAST <= ours <= LAUNCHED_AHEAD * theirs


def _means(cases: list[MeasuredCase]) -> dict[str, float]:
    """Of candidates that all cases have: the geometric mean of the microseconds."""
    names = [name for name in cases[0].times if all(name in case.times for case in cases)]
    return {
        name: math.exp(sum(math.log(case.times[name].microseconds) for case in cases) / len(cases)) for name in names
    }


def _row(
    op: str, architecture: str, kind: str, limits: Bounds, cases: list[tuple[MeasuredCase, Measured]]
) -> Row | None:  # fmt: skip
    """None where the times do not decide: PyTorch or ours is missing, or launches count."""
    in_graphs = [(case, file) for case, file in cases if case.graph]
    for graph, some in ((True, in_graphs), (False, [each for each in cases if each not in in_graphs])):
        if some and (row := _decided(op, architecture, kind, limits, some, graph)) is not None:
            return row
    return None


def _decided(
    op: str, architecture: str, kind: str, limits: Bounds, cases: list[tuple[MeasuredCase, Measured]], graph: bool
) -> Row | None:  # fmt: skip
    file, means = cases[-1][1], _means([case for case, _ in cases])
    best: dict[str, tuple[float, str]] = {}
    for name, mean in means.items():
        best[family(name)] = min(best.get(family(name), (math.inf, "")), (mean, name))
    quickest = sorted(best.values())
    if len(quickest) < 2 or len({is_ours(name) for _, name in quickest}) < 2:
        # Of PyTorch's own, the quickest is known, but not whether a kernel of ours would be quicker.
        return None
    chosen = quickest[0][1]
    if not graph and not all(_ahead_launched(case, chosen) for case, _ in cases):
        return None
    said = ", ".join(f"{name} {_said(mean)} us" for mean, name in quickest[:SAID])
    how = "in a graph" if graph else "launched singly"
    return Row(op, architecture, kind, limits, chosen, said, f"{file.device}, {how}", tuple(sorted(best)))


def _said(microseconds: float) -> str:
    return f"{microseconds:.0f}" if microseconds >= 100 else f"{microseconds:.3g}"


def _quickest_tile(cases: list[MeasuredCase]) -> Numbers | None:
    """Of cases in graphs."""
    tiles = sorted((mean, name) for name, mean in (_means(cases) if cases else {}).items() if numbers_of(name))
    return numbers_of(tiles[0][1]) if tiles else None


def _worth_timing(cases: list[MeasuredCase]) -> list[tuple[int, Numbers]]:
    """Tiles within NEAR of the quickest of some case, nearest first."""
    nearest: dict[Numbers, tuple[float, int]] = {}
    for case in cases:
        tiles = {n: t.microseconds for name, t in case.times.items() if (n := numbers_of(name)) is not None}
        if not tiles or not case.graph or case.features is None:
            continue
        for tile, microseconds in tiles.items():
            ratio = microseconds / min(tiles.values())
            if ratio <= NEAR:
                before = nearest.get(tile, (ratio, 0))
                nearest[tile] = min(ratio, before[0]), max(case.features["dim"], before[1])
    return [(dim, tile) for tile, (ratio, dim) in sorted(nearest.items(), key=lambda i: (i[1][0], i[0]))]
