"""What a found setting must reach: a number, or what the setting reaches that the user came with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import expect
from fastdiff.profiling.distances import Moments, frechet
from fastdiff.profiling.features import Extractor
from fastdiff.profiling.results import MEASURES
from fastdiff.profiling.store import Unit

Float64Array = NDArray[np.float64]
RESAMPLES = 1000
LEAST = 1e-9


@dataclass(frozen=True)
class Target:
    """measure: "ssim", "rmse" or "frechet". value: None for that of the start, on the same samples."""

    measure: str = "ssim"
    value: float | None = None

    def __post_init__(self) -> None:
        bound = {"ssim": "in (0, 1)", "rmse": "positive", "frechet": "positive"}[self.measure]
        good = self.value is None or (0 < self.value < (1 if self.measure == "ssim" else float("inf")))
        expect(good, f"target_{self.measure} must be {bound}, got {self.value!r}")

    @property
    def words(self) -> str:
        """For people."""
        title, less = MEASURES[self.measure]
        if self.value is None:
            return f"{title} {'not above' if less else 'not below'} the start's own"
        return f"{title} of {self.value:g} or {'less' if less else 'more'}"

    def value_of(self, units: Sequence[Unit], extractor: Extractor) -> float:
        """The measure over all samples of these blocks."""
        return self._of(_rows(units, self.measure), extractor)

    def _of(self, rows: Float64Array, extractor: Extractor) -> float:
        if self.measure == "ssim":
            return float(rows.mean())
        if self.measure == "rmse":
            return float(np.sqrt(np.square(rows).mean()))
        assert extractor.data is not None
        return frechet(rows, Moments.of(extractor.data))

    def gap(
        self, own: Sequence[Unit], start: Sequence[Unit], whole: Sequence[Unit], extractor: Extractor, errors: float
    ) -> float:
        """What `own` lacks to the target, less so many standard errors; with 1, <= 0 where it may reach it, with -1
        where it does with room to spare.

        start: the start on the same samples; whole: on all of the search, from which a distance of few samples takes
        its scale, as it is the larger the fewer there are.
        """
        sign = 1.0 if MEASURES[self.measure][1] else -1.0
        rows, theirs = _rows(own, self.measure), _rows(start, self.measure)
        mine = self._of(rows, extractor)
        goal = self._of(theirs, extractor)
        if self.value is not None:
            goal = goal + self.value - self.value_of(whole, extractor) if self.measure == "frechet" else self.value
        if self.measure == "frechet":
            error = 0.05 * abs(goal)
        else:
            error = float((rows - theirs if self.value is None else rows).std() / np.sqrt(len(rows)))
        return sign * (mine - goal) - errors * error

    def sure(self, own: Sequence[Unit], start: Sequence[Unit], extractor: Extractor) -> float:
        """The share of resampled sets of samples in which the target is reached."""
        sign = 1.0 if MEASURES[self.measure][1] else -1.0
        rows, theirs = _rows(own, self.measure), _rows(start, self.measure)
        rng, reached = np.random.default_rng(0), 0
        draws = RESAMPLES if self.measure != "frechet" else 100
        # Resampled sets repeat pictures, which moves a distance of sets: it is set about the value, as in distances.py.
        picks = [rng.integers(0, len(rows), len(rows)) for _ in range(draws)]
        ours = np.array([self._of(rows[pick], extractor) for pick in picks])
        goal = (
            np.full(draws, self.value)
            if self.value is not None
            else np.array([self._of(theirs[pick], extractor) for pick in picks])
        )
        if self.measure == "frechet":
            ours += self._of(rows, extractor) - ours.mean()
            if self.value is None:
                goal += self._of(theirs, extractor) - goal.mean()
        reached = int((sign * (ours - goal) <= LEAST).sum())
        return reached / draws


def _rows(units: Sequence[Unit], measure: str) -> Float64Array:
    """A row a sample."""
    name = "features" if measure == "frechet" else measure
    found = [getattr(unit, name) for unit in units]
    expect(all(each is not None for each in found), f"there is no {measure} of these samples")
    rows = np.concatenate(found)
    expect(bool(np.isfinite(rows).all()), f"pictures of this size have no {measure}; give another target")
    return rows
