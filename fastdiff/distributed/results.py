"""What a job has made, as Python and as summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastdiff.distributed.jobs import SampleJob
from fastdiff.distributed.manifest import SUMMARY, Record, hash_of, write_json
from fastdiff.distributed.scheduler import Throughput
from fastdiff.distributed.storage import Storage
from fastdiff.distributed.summing import summed


@dataclass(frozen=True)
class Result:
    """What a job has made, in this run and before.

    store: its name. samples: how many are there. sha256: of all samples, if all are there; else empty. failed: (first,
    last) of units that could not be made -> why. kinds: of workers that the samples are from; samples of two kinds may
    differ in their bits from those of one. differing: units that two workers made with other bits. statistics: number
    of samples, "frechet" to the extractor's data where it has data; empty without features. workers: what each did in
    this run.
    """

    store: str
    samples: int
    sha256: str
    failed: dict[tuple[int, int], str]
    kinds: tuple[str, ...]
    differing: tuple[tuple[int, int], ...]
    statistics: Mapping[str, Any]
    workers: Mapping[str, Throughput]

    def to_dict(self) -> dict[str, Any]:
        """As summary.json holds it, which does not say who was at work."""
        return {
            "samples": self.samples,
            "complete": bool(self.sha256),
            "sha256": self.sha256,
            "kinds": list(self.kinds),
            "statistics": dict(self.statistics),
            "failed": [{"first": first, "last": last, "why": why} for (first, last), why in self.failed.items()],
            "differing": [list(unit) for unit in self.differing],
        }

    @classmethod
    def from_dict(cls, store: str, data: Mapping[str, Any]) -> Result:
        """The opposite of to_dict."""
        failed = {(each["first"], each["last"]): each["why"] for each in data["failed"]}
        differing = tuple((first, last) for first, last in data["differing"])
        return cls(
            store, data["samples"], data["sha256"], failed, tuple(data["kinds"]), differing, data["statistics"], {}
        )


def conclude(
    store: Storage,
    job: SampleJob,
    records: Mapping[int, Record],
    given_up: Mapping[int, str],
    differing: Sequence[int],
    workers: Mapping[str, Throughput],
) -> Result:
    """Sum the statistics up and write summary.json. Units by their numbers."""
    units = job.units()
    made = [records[number] for number in sorted(records)]
    result = Result(
        store.name,
        sum(record["last"] + 1 - record["first"] for record in made),
        hash_of(made) if len(made) == len(units) else "",
        {units[number]: why for number, why in given_up.items()},
        tuple(sorted({record["kind"] for record in made})),
        tuple(units[number] for number in differing),
        summed(store, job, made) if job.features is not None and made else {},
        workers,
    )
    write_json(store, SUMMARY, result.to_dict())
    return result
