"""What a worker does: draw the samples of a unit, write them, and what is measured of them, into the store."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.distributed.formats import Made, get_format, unit_name
from fastdiff.distributed.jobs import SampleJob
from fastdiff.distributed.manifest import Record, model_digest, read_manifest, read_record, record_name, versions
from fastdiff.distributed.statistics import pack
from fastdiff.distributed.storage import Storage
from fastdiff.errors import expect
from fastdiff.profiling import get_extractor, get_subject
from fastdiff.profiling.drawing import Drawer
from fastdiff.profiling.prompted import prompted
from fastdiff.profiling.settings import Setting
from fastdiff.profiling.subject import Subject
from fastdiff.runtime.native import core

SOLVER, STEPS = "dpmpp-2m", 15  # of a model that does not say how it is sampled


class Sampler:
    """Makes units of a job. subject: the model, if it is loaded already.

    Raises ValueError for a job that the model cannot do, or a store that is not the job's.
    """

    def __init__(self, job: SampleJob, store: Storage, subject: Subject | None = None) -> None:
        expect(
            (read_manifest(store) or {}).get("job") == job.to_dict(),
            f"the worker on {socket.gethostname()} does not find the job in {store.name}; every worker must reach the "
            "same folder, or give a URL such as s3://bucket/folder",
        )
        self.job, self.store = job, store
        self.subject = _subject(job) if subject is None else subject
        expect(subject is None or job.prompts is None, "a Subject has its conditions, leave prompts out")
        self.setting = _completed(job, self.subject)
        self.format = get_format(job.format)
        if job.format in ("png", "webdataset") or job.features is not None:
            self.subject.require_pictures()
        self.extractor = None if job.features is None else get_extractor(job.features, device=self.subject.device)
        self.drawer = Drawer(self.subject, job.seed)
        self.drawer.arguments(self.setting, 0, 1)  # refuses guidance without a condition to leave out

    def hello(self) -> dict[str, Any]:
        """What the driver asks of a worker before it gets work."""
        return {
            "versions": versions(),
            "model_sha256": model_digest(self.subject.model),
            "kind": self.kind(),
            "place": f"{socket.gethostname()}, process {os.getpid()}",
            "setting": self.setting.to_dict(),
        }

    def kind(self) -> str:
        """What the bits of a sample may depend on beside the job and the versions."""
        device = self.subject.device
        if device.type == "cuda":
            return torch.cuda.get_device_name(device)
        threads = torch.get_num_threads()
        return f"CPU, {core.isa()}, {torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' * (threads != 1)}"

    def make(self, unit: Sequence[int]) -> Record:
        """The samples unit[0] to unit[1]; their record, with "differs" if the store had them already with other bits.
        Raises SamplingError if the model fails, OSError if the store cannot be written."""
        first, last = unit
        started = time.perf_counter()
        batch = self.setting.batch
        begin, end = first // batch * batch, -(-(last + 1) // batch) * batch
        drawn = self.drawer.draw(self.setting, begin, end - begin).samples
        kept = slice(first - begin, last + 1 - begin)
        samples = drawn[kept].cpu()
        pictures: list[Tensor] = []

        def shown() -> Tensor:
            """Of the whole batches, decoded in batches as they were drawn."""
            if not pictures:
                pictures.append(torch.cat([self.subject.pictures(part).cpu() for part in drawn.split(batch)]))
            return pictures[0]

        made = Made(first, samples, lambda: shown()[kept], self._about(first, last))
        files = self.format(made)
        if self.extractor is not None:
            features = self.extractor(shown(), batch=batch)[kept]
            files[f"statistics/{unit_name(first, last)}.npz"] = pack(features, self.job.statistics)
        record: Record = {
            "first": first,
            "last": last,
            "samples_sha256": hashlib.sha256(samples.contiguous().numpy().tobytes()).hexdigest(),
            "files": {name: {"sha256": _sha256(data), "bytes": len(data)} for name, data in files.items()},
            "kind": self.kind(),
        }
        before = read_record(self.store, unit)  # of another worker that was faster
        if before is not None and before["samples_sha256"] != record["samples_sha256"]:
            return {**before, "differs": record["samples_sha256"]}
        for name, data in files.items():
            self.store.write(name, data)
        record["seconds"] = round(time.perf_counter() - started, 4)
        self.store.write(record_name(unit), json.dumps(record).encode())  # the last: now the unit is made
        return record

    def _about(self, first: int, last: int) -> list[dict[str, Any]]:
        """Of each sample: its number, and the conditions that are one whole number a sample, such as a class."""
        count = last + 1 - first
        cond, _ = self.subject.conditions_of(first, count)
        told: dict[str, list[Any]] = {
            key: value.tolist()
            for key, value in cond.items()
            if isinstance(value, Tensor) and value.shape == (count,) and not value.is_floating_point()
        }
        shared = {"model": self.subject.name, "seed": self.job.seed}
        if self.job.prompts is not None:
            told["prompt"] = [self.job.prompts[k % len(self.job.prompts)] for k in range(first, last + 1)]
        return [{**shared, "sample": first + k, **{key: told[key][k] for key in told}} for k in range(count)]


def _subject(job: SampleJob) -> Subject:
    if job.prompts is None:
        return get_subject(job.model, device=job.device)
    return prompted(job.model, job.prompts, device=job.device)


def _completed(job: SampleJob, subject: Subject) -> Setting:
    """With what the model says of itself where the job says nothing."""
    own = getattr(getattr(subject.model, "info", None), "sampling", None)
    setting = job.setting(SOLVER if own is None else own.solver, STEPS if own is None else own.steps, subject.guidance)
    if own is None or job.grid is not None:
        return setting
    return Setting(**{**vars(setting), "grid": own.grid})


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
