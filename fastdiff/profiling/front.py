"""The settings worth taking: the Pareto front of time and quality, and the best for a budget or a target."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from fastdiff.errors import expect, unknown
from fastdiff.profiling.results import MEASURES, Row, value_of

SAME_TIME = 0.03  # times that differ by less than this share count as equal
SURE = 2.0  # standard errors of their difference within which they do so too
SAME_QUALITY = 0.01  # and measures of quality, where the best is taken
GOOD_SSIM = 0.95  # of what is taken where nothing else is asked for


def front(rows: Sequence[Row], measure: str = "rmse") -> list[Row]:
    """Rows that no other beats: none is better and no slower. Fastest first. Times within `SAME_TIME` or within their
    noise are equal."""
    sign = _sign(measure)
    known = [row for row in rows if row["seconds"] and value_of(row, measure) is not None]

    def quality(row: Row) -> float:
        return sign * float(value_of(row, measure) or 0.0)

    def beaten(row: Row) -> bool:
        for other in known:
            if other is row or other["seconds"]["median"] > row["seconds"]["median"] * (1 + same_time(other, row)):
                continue
            if quality(other) < quality(row):
                return True
            if quality(other) == quality(row) and other["seconds"]["median"] < row["seconds"]["median"]:
                return True
        return False

    return sorted((row for row in known if not beaten(row)), key=lambda row: row["seconds"]["median"])


def same_time(a: Row, b: Row) -> float:
    """The share by which the times of these rows must differ to be told apart."""
    noise = math.hypot(*(row["seconds"].get("noise", 0.0) for row in (a, b)))
    return max(SAME_TIME, SURE * noise)


def parse_seconds(text: str | float) -> float:
    """Seconds from "2s", "300ms", "1.5m" or a number of seconds. Raises ValueError for anything else."""
    if isinstance(text, (int, float)):
        value = float(text)
    else:
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?\d+)?)\s*(ms|s|m|min)?\s*", text)
        expect(found is not None, f'a time must be like "2s", "300ms" or "1m", got {text!r}')
        assert found is not None
        value = float(found[1]) * {"ms": 1e-3, "s": 1.0, None: 1.0, "m": 60.0, "min": 60.0}[found[2]]
    expect(0 < value < float("inf"), f"a time must be positive, got {text!r}")
    return value


def pick(
    rows: Sequence[Row], *, budget: float | None = None, target: float | None = None, measure: str = "rmse"
) -> tuple[Row, str]:
    """(the row to take, why).

    budget: seconds a sample; the best row that takes no longer. target: the fastest row that is at least as good. Both:
    the fastest that reaches the target, within the budget. Neither: the fastest with an SSIM of `GOOD_SSIM`, or else
    the best. The best is the fastest of those within `SAME_QUALITY` of it. Raises ValueError that says what the nearest
    rows can do where none fits.
    """
    known = front(rows, measure)
    title = MEASURES[measure][0]
    expect(len(known) > 0, f"no setting has a {title}")
    sign = _sign(measure)
    fastest = known[0]

    def best() -> Row:
        value = sign * float(value_of(known[-1], measure) or 0.0)
        limit = value + SAME_QUALITY * abs(value)
        return next(row for row in known if sign * float(value_of(row, measure) or 0.0) <= limit)

    if budget is not None:
        known = [row for row in known if row["seconds"]["median"] <= budget]
        expect(
            len(known) > 0,
            f"no setting takes at most {budget:g} s a sample; the fastest, {fastest['label']}, takes "
            f"{fastest['seconds']['median']:.3g} s",
        )
    if target is not None:
        reached = [row for row in known if sign * float(value_of(row, measure) or 0.0) <= sign * target]
        within = f" within {budget:g} s a sample" if budget is not None else ""
        expect(
            len(reached) > 0,
            f"no setting has a {title} of {target:g} or better{within}; the best, {known[-1]['label']}, has "
            f"{value_of(known[-1], measure):.3g} in {known[-1]['seconds']['median']:.3g} s",
        )
        return reached[0], f"the fastest with a {title} of {target:g} or better{within}"
    if budget is not None:
        return best(), f"the best {title} within {budget:g} s a sample"
    good = [row for row in known if row["ssim"] is not None and row["ssim"] >= GOOD_SSIM]
    if good and measure == "rmse":
        return good[0], f"the fastest whose pictures have an SSIM of {GOOD_SSIM:g} to the converged ones"
    return best(), f"the best {title}"


def _sign(measure: str) -> float:
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)
    return 1.0 if MEASURES[measure][1] else -1.0
