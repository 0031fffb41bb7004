"""Features and moments of samples, made where the samples are, and put together for all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastdiff.distributed.formats import arrays, read_arrays
from fastdiff.errors import expect
from fastdiff.profiling.distances import Moments

Float64Array = NDArray[np.float64]
KEPT = ("features", "moments")


@dataclass(frozen=True)
class Sums:
    """count of feature vectors, their mean (D,), and scatter (D, D): the sum over them of (x - mean)(x - mean)^T."""

    count: int
    mean: Float64Array
    scatter: Float64Array

    @classmethod
    def of(cls, features: Float64Array) -> Sums:
        """Of (N, D), N >= 1."""
        mean = features.mean(0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def __add__(self, other: Sums) -> Sums:
        """Of both sets (Chan et al. 1979, Eq. 2.1)."""
        count = self.count + other.count
        apart = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(apart, apart) * (self.count * other.count / count)
        return Sums(count, self.mean + apart * (other.count / count), scatter)

    @property
    def covariance(self) -> Float64Array:
        """Unbiased. Raises ValueError for fewer than two samples."""
        expect(self.count >= 2, f"a covariance needs at least 2 samples, got {self.count}")
        return self.scatter / (self.count - 1)


def total(parts: Iterable[Sums]) -> Sums:
    """Of all, in the order that they are given: the sum's rounding depends on it."""
    found: Sums | None = None
    for part in parts:
        found = part if found is None else found + part
    expect(found is not None, "there are no samples to sum up")
    assert found is not None
    return found


def pack(features: Float64Array, kept: str) -> bytes:
    """The file of a unit. kept: "features" for all (N, D), or "moments" for sums, which are smaller where N > D."""
    if kept == "features":
        return arrays(features=features)
    sums = Sums.of(features)
    return arrays(count=np.array(sums.count), mean=sums.mean, scatter=sums.scatter)


def unpack(content: bytes) -> Sums:
    """The sums of a unit's file of either kind."""
    found = read_arrays(content)
    if "features" in found:
        return Sums.of(found["features"])
    return Sums(int(found["count"]), found["mean"], found["scatter"])


def frechet(x: Sums, y: Moments) -> float:
    """Frechet distance from moments alone; as `fastdiff.profiling.distances.frechet` of the features themselves."""
    values, vectors = np.linalg.eigh(x.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.linalg.svd(root @ y.root, compute_uv=False).sum()
    return float(np.square(x.mean - y.mean).sum() + np.trace(x.covariance) + np.trace(y.covariance) - 2 * cross)
