"""The statistics of all samples of a job, from those of its units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastdiff.distributed.formats import arrays, unit_name
from fastdiff.distributed.jobs import SampleJob
from fastdiff.distributed.manifest import Record
from fastdiff.distributed.statistics import frechet, total, unpack
from fastdiff.distributed.storage import Storage
from fastdiff.profiling import get_extractor
from fastdiff.profiling.distances import Moments

MOMENTS = "moments.npz"


def summed(store: Storage, job: SampleJob, made: Sequence[Record]) -> dict[str, Any]:
    """Write moments.npz (count, mean, covariance) of the units that are made; what summary.json says of them."""
    names = [f"statistics/{unit_name(record['first'], record['last'])}.npz" for record in made]
    sums = total(unpack(store.read(name)) for name in names)
    found: dict[str, Any] = {"features": job.features, "dimensions": len(sums.mean), "samples": sums.count}
    if sums.count < 2:
        return found
    store.write(MOMENTS, arrays(count=np.array(sums.count), mean=sums.mean, covariance=sums.covariance))
    assert job.features is not None
    data = get_extractor(job.features).data
    if data is not None and data.shape[1] == len(sums.mean):
        found["frechet"] = frechet(sums, Moments.of(data))
    return found
