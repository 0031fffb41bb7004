"""Distances between two sets of feature vectors, with bootstrap intervals.

Every measure takes x (N, D), the samples, and y (M, D), the data, float64. An interval is over resampled x; y is fixed.
The Frechet distance of few samples is too large (by about the trace of the covariance over N), and the fewer the more:
compare it at equal N only. It is not FID, which names Inception's features of at least ten thousand pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import expect

Float64Array = NDArray[np.float64]
NEIGHBOURS = 3
PROJECTIONS = 128
RESAMPLES = 200


@dataclass(frozen=True)
class Estimate:
    """value, and the 5th and 95th percentile of its bootstrap; count: how many samples it is from."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Moments:
    """mean (D,), covariance (D, D) and a root of it, of one set."""

    mean: Float64Array
    covariance: Float64Array
    root: Float64Array

    @classmethod
    def of(cls, x: Float64Array) -> Moments:
        """Of the rows of x, the unbiased covariance."""
        covariance = np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1])
        values, vectors = np.linalg.eigh(covariance)
        return cls(x.mean(0), covariance, (vectors * np.sqrt(values.clip(0))) @ vectors.T)


def frechet(x: Float64Array, y: Moments) -> float:
    """|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)) (Dowson & Landau 1982, Eq. 4; Heusel et al. 2017, Section 3).

    The trace of the root is the sum of the singular values of A R, C_x = A^T A and C_y = R R: for N < D this is exact
    where an iteration for the root of a singular matrix is not.
    """
    centred = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    cross = np.linalg.svd(centred @ y.root, compute_uv=False).sum()
    apart = np.square(x.mean(0) - y.mean).sum()
    return float(apart + np.square(centred).sum() + np.trace(y.covariance) - 2 * cross)


def kernel(x: Float64Array, y: Float64Array) -> Float64Array:
    """(N, M): (x y / D + 1)^3 (Binkowski et al. 2018, Eq. 5)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kid(x: Float64Array, y: Float64Array) -> float:
    """Squared maximum mean discrepancy, unbiased (Binkowski et al. 2018, Eq. 3 and 5); may be negative."""
    return float(_kid(kernel(x, x), kernel(x, y).mean(1), _within(kernel(y, y)), np.ones((1, len(x))))[0])


def _within(k: Float64Array) -> float:
    return float((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)))


def _kid(kxx: Float64Array, to_data: Float64Array, data: float, weights: Float64Array) -> Float64Array:
    """For each row of weights (R, N), how often each sample counts. Pairs of a sample with itself do not count."""
    diagonal = np.square(weights) @ np.diag(kxx)
    pairs = weights.sum(1) ** 2 - np.square(weights).sum(1)
    within = (np.einsum("ri,ij,rj->r", weights, kxx, weights, optimize=True) - diagonal) / pairs
    return within + data - 2 * (weights @ to_data) / weights.sum(1)


def sliced_wasserstein(x: Float64Array, y: Float64Array, *, seed: int = 0) -> float:
    """Mean over random directions of the 1-Wasserstein distance of the projections (Rabin et al. 2011, Def. 1)."""
    directions = _directions(x.shape[1], seed)
    return float(_sliced(x @ directions, np.sort(y @ directions, axis=0)))


def _directions(features: int, seed: int) -> Float64Array:
    directions = np.random.default_rng(seed).standard_normal((features, PROJECTIONS))
    return directions / np.linalg.norm(directions, axis=0)


def _sliced(projected: Float64Array, data: Float64Array) -> float:
    """projected (N, P); data (M, P), sorted: its quantiles are taken at the middle of each of N equal parts."""
    at = ((np.arange(len(projected)) + 0.5) / len(projected) * len(data) - 0.5).clip(0, len(data) - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(data) - 1)
    quantiles = data[low] + (at - low)[:, None] * (data[high] - data[low])
    return float(np.abs(np.sort(projected, axis=0) - quantiles).mean())


def precision_recall(x: Float64Array, y: Float64Array, *, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Share of x within the data's manifold, and of y within the samples' (Kynkaanniemi et al. 2019, Eq. 2).

    A manifold is the union of balls around its points up to their k-th neighbour. As many rows of y are used as x has.
    """
    y = _thinned(y, len(x))
    expect(min(len(x), len(y)) > neighbours, f"precision and recall need more than {neighbours} samples, got {len(x)}")
    xx, yy, xy = _distances(x, x), _distances(y, y), _distances(x, y)
    return _precision_recall(xx, yy, xy, neighbours)


def _precision_recall(xx: Float64Array, yy: Float64Array, xy: Float64Array, neighbours: int) -> tuple[float, float]:
    radius_x, radius_y = (np.sort(d, axis=1)[:, neighbours] for d in (xx, yy))  # the 0th is the point itself
    return float((xy <= radius_y).any(1).mean()), float((radius_x >= xy.T).any(1).mean())


def _distances(x: Float64Array, y: Float64Array) -> Float64Array:
    squared = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T
    return np.sqrt(squared.clip(0))


def _thinned(y: Float64Array, count: int) -> Float64Array:
    """As many rows as `count`, evenly spread, all if there are fewer."""
    return y[np.linspace(0, len(y) - 1, min(count, len(y))).round().astype(int)]


class Data:
    """The data's features and what of them every comparison needs."""

    def __init__(self, features: Float64Array, *, seed: int = 0) -> None:
        expect(
            features.ndim == 2 and len(features) > NEIGHBOURS + 1 and bool(np.isfinite(features).all()),
            f"the data must be finite features (N, D) of at least {NEIGHBOURS + 2} pictures, got {features.shape}",
        )
        self.features, self.seed = features, seed
        self.moments = Moments.of(features)
        self.kid_within = _within(kernel(features, features))
        self.directions = _directions(features.shape[1], seed)
        self.projected = np.sort(features @ self.directions, axis=0)

    def compare(self, x: Float64Array, *, resamples: int = RESAMPLES) -> dict[str, Estimate]:
        """All measures of the samples x. Raises ValueError for too few, or other features than the data's."""
        count = len(x)
        expect(
            x.ndim == 2 and x.shape[1] == self.features.shape[1],
            f"samples must have {self.features.shape[1]} features each, got {x.shape}",
        )
        expect(count > NEIGHBOURS + 1, f"distances need at least {NEIGHBOURS + 2} samples, got {count}")
        expect(bool(np.isfinite(x).all()), "the samples' features are not finite")
        rng = np.random.default_rng(self.seed)
        picks = rng.integers(0, count, (resamples, count))
        found = {"frechet": self._interval(lambda rows: frechet(rows, self.moments), x, picks)}

        weights = np.stack([np.bincount(p, minlength=count) for p in picks]).astype(np.float64)
        kxx, to_data = kernel(x, x), kernel(x, self.features).mean(1)
        spread = _kid(kxx, to_data, self.kid_within, weights)
        value = _kid(kxx, to_data, self.kid_within, np.ones((1, count)))[0]
        found["kid"] = _estimate(float(value), spread, count)

        projected = x @ self.directions
        found["sliced_wasserstein"] = self._interval(lambda rows: _sliced(rows, self.projected), projected, picks)

        y = _thinned(self.features, count)
        precision, recall = precision_recall(x, y)
        reach = np.sort(_distances(y, y), axis=1)[:, NEIGHBOURS]
        inside = np.asarray((reach >= _distances(x, y)).any(1))
        found["precision"] = _estimate(precision, inside[picks].mean(1), count)
        # Resampled x have no radii of their own (copies are at distance 0): the data are what is resampled for recall.
        radii = np.sort(_distances(x, x), axis=1)[:, NEIGHBOURS]
        reached = np.asarray((radii >= _distances(y, x)).any(1))
        found["recall"] = _estimate(recall, reached[rng.integers(0, len(y), (resamples, len(y)))].mean(1), count)
        return found

    def floor(self, count: int, *, draws: int = 20) -> dict[str, Estimate]:
        """What `count` pictures of the data itself score against it: the least that a perfect model could be told from.

        Each draw is compared with the data that it is not from."""
        rng = np.random.default_rng(self.seed)
        count = min(count, len(self.features) // 2)
        scores: dict[str, list[float]] = {}
        for _ in range(draws):
            order = rng.permutation(len(self.features))
            x, rest = self.features[order[:count]], self.features[order[count:]]
            scores.setdefault("frechet", []).append(frechet(x, Moments.of(rest)))
            scores.setdefault("kid", []).append(kid(x, rest))
            scores.setdefault("sliced_wasserstein", []).append(sliced_wasserstein(x, rest, seed=self.seed))
            precision, recall = precision_recall(x, rest)
            scores.setdefault("precision", []).append(precision)
            scores.setdefault("recall", []).append(recall)
        return {name: _estimate(float(np.mean(s)), np.array(s), count) for name, s in scores.items()}

    def _interval(
        self, measure: Callable[[Float64Array], float], x: Float64Array, picks: NDArray[np.int64]
    ) -> Estimate:
        return _estimate(measure(x), np.array([measure(x[p]) for p in picks]), len(x))


def _estimate(value: float, spread: Float64Array, count: int) -> Estimate:
    """The interval is that of the resampled values about their mean, set about the value: resampling repeats pictures,
    which moves the Frechet distance and the sliced one up."""
    low, high = value + np.percentile(spread, (5, 95)) - spread.mean()
    return Estimate(value, float(low), float(high), count)
