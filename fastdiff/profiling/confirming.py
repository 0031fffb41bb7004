"""What a search found, held to samples that it has not seen, and the report of it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastdiff import pictures
from fastdiff.profiling.api import conclude
from fastdiff.profiling.front import same_time
from fastdiff.profiling.measures import rmse, ssim
from fastdiff.profiling.plan import Plan
from fastdiff.profiling.reference import converged
from fastdiff.profiling.report import write
from fastdiff.profiling.results import MEASURES, Profile, Row, interval, rows_of, times_of
from fastdiff.profiling.search import BLOCK, Search
from fastdiff.profiling.settings import Setting
from fastdiff.profiling.store import Store, Unit
from fastdiff.profiling.sweep import SHOWN, Sweep

ROUNDS = 5  # of timing, at most; 2 at least
SURE = 0.9  # share of resampled sets from which a finding is called sure
CALIBRATED = 0.03  # relative uncertainty of seconds that come from counted calls
INTERVAL = 1.645  # standard errors to either side: 90%


@dataclass(frozen=True)
class Found:
    """What `fastdiff.find` gives.

    best: the row of the setting to take, None if none reaches the target; start: that of the setting which the user
    came with; both measured on fresh samples, as are finalists, fastest first. faster: how many times as fast the best
    is, and the ends of a 90% interval. sure: the share of resampled sets of fresh samples in which it reaches the
    target. reason: in words. line: the Python that uses it. profile: all that was searched, with the report.
    search: what it was searched with.
    """

    best: Row | None
    start: Row | None
    finalists: list[Row]
    faster: tuple[float, float, float] | None
    sure: float | None
    reason: str
    line: str
    profile: Profile
    search: Search


@dataclass(frozen=True)
class Confirmed:
    """Rows on fresh samples, by slug how sure each setting reaches the target, and how far the times can be trusted."""

    rows: list[Row]
    sure: dict[str, float]
    times: dict[str, Any] | None


def confirm(search: Search, finalists: Sequence[Setting], seed: int, until: float) -> Confirmed:
    """Draw the finalists and the start for samples of another seed, timed side by side in rounds until `until`."""
    sweep = side_by_side(search, [*finalists, search.start], seed, search.store.folder / "fresh", until)
    first = {slug: units[0] for slug, units in sweep.units.items() if not units[0].error}
    begun = first.get(search.start.slug)
    sure = {} if begun is None else {
        slug: search.target.sure([unit], [begun], search.extractor) for slug, unit in first.items()
    }  # fmt: skip
    return Confirmed(measured(sweep), sure, times_of(sweep))


def side_by_side(search: Search, settings: Sequence[Setting], seed: int, folder: Path, until: float) -> Sweep:
    """The settings on as many samples as the search had, of this seed, in at least two rounds and until `until` at
    most. What the folder has is not drawn again."""
    drawer, samples, old = search.drawer.with_seed(seed % 2**64), search.blocks * BLOCK, search.reference
    store = Store(folder)
    store.begin({"fixed": {"seed": drawer.seed}}, resume=True)
    base = replace(search.speeds.base, precision="float32", batch=samples)
    finest = replace(base, solver=old.solver, steps=old.steps, grid=old.grid)
    near = converged(drawer, store, finest, samples, lambda *_: search.tell("converged trajectory of fresh samples"))
    sweep = Sweep(
        drawer, store, settings, Plan(samples, ROUNDS, 0.0), search.extractor, old.steps,
        references={base.target: replace(old, pictures=near)},
    )  # fmt: skip
    order = random.Random(0)
    for number in range(ROUNDS):
        if number >= 2 and time.monotonic() > until:
            break
        shuffled = list(settings)
        order.shuffle(shuffled)
        for setting in shuffled:
            search.tell(f"fresh samples, round {number + 1}: {setting.label}")
            unit = store.load(setting.slug, number)
            if unit is None:
                unit = _drawn(sweep, setting, number, near)
                store.save(setting.slug, number, unit)
            sweep.units.setdefault(setting.slug, {})[number] = unit
    return sweep


def measured(sweep: Sweep) -> list[Row]:
    """The rows of `side_by_side`, whose rounds all have the same samples; SSIM with its interval in "ssim_interval"."""
    rows = rows_of(sweep)
    for row in rows:
        row["samples"] = sweep.plan.round_size
        similar = sweep.units[row["slug"]][0].ssim
        row["ssim_interval"] = interval(similar, np.mean) if row["ssim"] is not None and similar is not None else None
    return rows


def _drawn(sweep: Sweep, setting: Setting, number: int, near: Any) -> Unit:
    """All samples once; after the first round for the time alone."""
    count = sweep.plan.round_size
    try:
        drawn = sweep.drawer.draw(setting, 0, count)
    except Exception as error:
        return Unit(error=f"{type(error).__name__}: {error}")
    unit = Unit(
        0, drawn.seconds / count, drawn.calls, drawn.evaluations, drawn.full_calls, others=drawn.others
    )  # fmt: skip
    if number == 0:
        shown = sweep.drawer.subject.pictures(drawn.samples).cpu()
        unit.features, unit.rmse, unit.ssim = sweep.extractor(shown), rmse(shown, near), ssim(shown, near)
        unit.shown = pictures.to_uint8(shown[:SHOWN])
    return unit


def reported(search: Search, confirmed: Confirmed | None) -> Found:
    """The report of a search, and what to take from it. confirmed: None after an interruption."""
    settings = [s for s, units in search.units.items() if units and s not in search.passing]
    extractor = replace(search.extractor, data=None)  # few samples each: distances of sets would say nothing
    sweep = Sweep(
        search.drawer, search.store, settings, Plan(BLOCK, search.blocks, 0.0), extractor, search.reference.steps,
        references={search.speeds.base.target: search.reference},
        units={setting.slug: search.units[setting] for setting in settings},
    )  # fmt: skip
    rows = rows_of(sweep)
    for setting, row in zip(settings, rows):
        if row["seconds"]:
            seconds = search.seconds(setting)
            row["seconds"] = {"median": seconds, "p20": seconds, "p80": seconds, "noise": CALIBRATED, "own": False}
    profile = conclude(sweep, rows, None, None, confirmed is not None)
    start, best, finalists, sure = None, None, [], None
    if confirmed is not None:
        start = next((row for row in confirmed.rows if row["slug"] == search.start.slug), None)
        good = [row for row in confirmed.rows if row is not start and row["seconds"]]
        finalists = sorted(good, key=lambda row: row["seconds"]["median"])
        best = _best(search, finalists, confirmed.sure)
    faster = None
    if best is not None and start is not None and start["seconds"]:
        sure = confirmed.sure[best["slug"]] if confirmed else None
        faster = times_as_fast(start, best)
    reason = _reason(search, finalists, best, sure)
    line = profile.lines.get(best["slug"], "") if best else ""
    picked = next((row for row in profile.rows if best and row["slug"] == best["slug"]), None)
    facts = {
        **profile.facts, "left_out": search.speeds.left_out, "times": confirmed and confirmed.times,
        "find": None if confirmed is None else {
            "target": search.target.words, "reason": reason, "faster": faster, "sure": sure,
            "samples": search.blocks * BLOCK, "start": start, "finalists": finalists, "settings": len(search.units),
        },
    }  # fmt: skip
    profile = replace(profile, facts=facts, picked=picked, reason=reason, line=line)
    write(profile)
    return Found(best, start, finalists, faster, sure, reason, line, profile, search)


def _best(search: Search, finalists: Sequence[Row], sure: dict[str, float]) -> Row | None:
    """The fastest that is sure, or else that reaches the target in half of the resampled sets; of those that cannot be
    told from it in time, the one with the best measure."""
    for least in (SURE, 0.5):
        good = [row for row in finalists if sure.get(row["slug"], 0.0) >= least]
        if good:
            fastest = good[0]["seconds"]["median"]
            same = [row for row in good if row["seconds"]["median"] <= fastest * (1 + same_time(good[0], row))]
            return _nearest(search, same)
    return None


def _nearest(search: Search, rows: Sequence[Row]) -> Row:
    """The one with the best of the target's measure."""
    sign = 1.0 if MEASURES[search.target.measure][1] else -1.0
    return min(rows, key=lambda row: sign * _number(row, search.target.measure))


def times_as_fast(slow: Row, fast: Row) -> tuple[float, float, float]:
    """(factor, and the ends of its 90% interval) from the noise of both times."""
    factor = slow["seconds"]["median"] / fast["seconds"]["median"]
    spread = float(np.exp(INTERVAL * np.hypot(slow["seconds"]["noise"], fast["seconds"]["noise"])))
    return factor, factor / spread, factor * spread


def _reason(search: Search, finalists: Sequence[Row], best: Row | None, sure: float | None) -> str:
    words, measure = search.target.words, search.target.measure
    if not finalists:
        return "the search ended before anything was confirmed"
    if best is None:
        nearest = _nearest(search, finalists)
        return (
            f"no setting that was tried has a {words}; the nearest, {nearest['label']}, has "
            f"{_number(nearest, measure):.3g} in {nearest['seconds']['median']:.3g} s a sample"
        )
    certain = "" if sure is not None and sure >= SURE else ", which is not sure: more --minutes give more samples"
    return f"the fastest found with a {words}, in {100 * (sure or 0):.0f}% of resampled sets of fresh samples{certain}"


def _number(row: Row, measure: str) -> float:
    value = row[measure]
    return float(value["value"] if isinstance(value, dict) else value)
