"""Distances between sets of features: closed forms, brute force, and what their intervals are about."""

import numpy as np
import pytest
from scipy import linalg, stats

from fastdiff.profiling import distances
from fastdiff.profiling.distances import Data, Moments


def textbook_frechet(x, y):
    """With scipy's root of the product, for N > D."""
    cx, cy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(cx @ cy).real
    return np.square(x.mean(0) - y.mean(0)).sum() + np.trace(cx + cy - 2 * root)


def test_frechet(rng):
    y = rng.standard_normal((300, 6)) @ rng.standard_normal((6, 6))
    x = 0.5 * rng.standard_normal((200, 6)) + 1
    assert distances.frechet(x, Moments.of(y)) == pytest.approx(textbook_frechet(x, y), rel=1e-9)
    shift = np.arange(6.0)
    assert distances.frechet(y + shift, Moments.of(y)) == pytest.approx(np.square(shift).sum(), rel=1e-9)
    assert distances.frechet(3 * y, Moments.of(y)) == pytest.approx(
        np.square(2 * y.mean(0)).sum() + 4 * np.trace(np.cov(y, rowvar=False)), rel=1e-9
    )


def test_frechet_of_fewer_samples_than_features(rng):
    """The covariance is singular; against the eigenvalues of the product in full."""
    x, y = rng.standard_normal((5, 20)), rng.standard_normal((100, 20))
    cx, cy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(cx @ cy).real.clip(0)).sum()
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(cx) + np.trace(cy) - 2 * root
    assert distances.frechet(x, Moments.of(y)) == pytest.approx(expected, rel=1e-6)


def brute_kid(x, y):
    k = lambda a, b: (a @ b / len(a) + 1) ** 3  # noqa: E731
    within = lambda z: np.mean([k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])  # noqa: E731
    return within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])


def test_kid(rng):
    x, y = rng.standard_normal((7, 4)), rng.standard_normal((9, 4)) + 0.3
    assert distances.kid(x, y) == pytest.approx(brute_kid(x, y), rel=1e-10)


def test_kid_is_unbiased(rng):
    found = [distances.kid(rng.standard_normal((10, 3)), rng.standard_normal((12, 3))) for _ in range(400)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 20


def test_sliced_wasserstein(rng):
    x, y = rng.standard_normal((50, 5)), rng.standard_normal((50, 5)) * 2
    directions = distances._directions(5, 0)
    one = [stats.wasserstein_distance(x @ u, y @ u) for u in directions.T]
    assert distances.sliced_wasserstein(x, y) == pytest.approx(np.mean(one), rel=1e-9)
    assert distances.sliced_wasserstein(y, y) == pytest.approx(0, abs=1e-12)
    shift = np.ones(5)
    expected = np.abs(shift @ directions).mean()
    assert distances.sliced_wasserstein(y + shift, y) == pytest.approx(expected, rel=1e-9)


def test_precision_and_recall(rng):
    y = rng.standard_normal((60, 2))
    assert distances.precision_recall(y, y) == (1, 1)
    assert distances.precision_recall(y + 100, y) == (0, 0)
    two_modes = np.concatenate([y[:30], y[30:] + 100])
    precision, recall = distances.precision_recall(np.concatenate([y[:30], y[:30] + 1e-3]), two_modes)
    assert precision == 1
    assert recall == 0.5


def test_intervals_hold_the_value_and_shrink_with_more_samples(rng):
    data = Data(rng.standard_normal((400, 8)))
    few, many = (data.compare(rng.standard_normal((n, 8)), resamples=60) for n in (20, 160))
    for name, estimate in few.items():
        assert estimate.low <= estimate.value <= estimate.high, name
        assert estimate.count == 20
    for name in ("frechet", "kid", "sliced_wasserstein"):
        assert many[name].high - many[name].low < few[name].high - few[name].low
    assert many["frechet"].value < few["frechet"].value  # few samples look farther away than they are
    moved = data.compare(rng.standard_normal((160, 8)) + 1, resamples=60)
    for name in ("frechet", "kid", "sliced_wasserstein"):
        assert moved[name].low > many[name].high


def test_the_floor_is_that_of_as_many_pictures_of_the_data(rng):
    data = Data(rng.standard_normal((200, 8)))
    floor = data.floor(30)
    same = data.compare(rng.standard_normal((30, 8)), resamples=40)
    assert floor["frechet"].low <= same["frechet"].value <= 1.5 * floor["frechet"].high
    assert floor["frechet"].count == 30


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((4, 3)), "at least 5 samples, got 4"),
        (np.zeros((9, 2)), "3 features each"),
        (np.full((9, 3), np.nan), "not finite"),
    ],
)
def test_bad_samples(x, message, rng):
    with pytest.raises(ValueError, match=message):
        Data(rng.standard_normal((20, 3))).compare(x)
