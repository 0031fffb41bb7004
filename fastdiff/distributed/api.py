"""`fastdiff.distributed.sample`: many samples, on one machine or many, into a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch

from fastdiff import arguments
from fastdiff.distributed import pool_choice, torchrun
from fastdiff.distributed.driver import Driver
from fastdiff.distributed.jobs import DEFAULTS, SampleJob
from fastdiff.distributed.manifest import begin, keep_model, made_units, read_manifest
from fastdiff.distributed.pools import InProcess, Pool
from fastdiff.distributed.results import Result, conclude
from fastdiff.distributed.sampler import Sampler
from fastdiff.distributed.scheduler import Limits, Progress
from fastdiff.distributed.storage import Storage, open_storage
from fastdiff.errors import expect
from fastdiff.profiling.subject import Subject

COUNT = 1_000


def sample(
    model: str | Subject | None,
    out: str | Path,
    *,
    count: int | None = None,
    first: int | None = None,
    seed: int | None = None,
    solver: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    grid: str | None = None,
    precision: str | None = None,
    backend: str | None = None,
    cache: str | None = None,
    batch: int | None = None,
    shard: int | None = None,
    format: str | None = None,
    features: str | None = None,
    statistics: str | None = None,
    device: str | None = None,
    prompts: str | Sequence[str] | None = None,
    workers: int | None = None,
    threads: int | None = None,
    cluster: str | None = None,
    resume: bool = False,
    limits: Limits = Limits(),
    on_progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Draw samples `first` to `first + count - 1` of a seed into the store `out`, in units that are there whole or not
    at all. Sample k has the same bits whoever makes it, on workers of one kind.

    model: as for `fastdiff.profile`; a Subject needs `workers=None`. None for the job that is in `out`. out: a folder,
    or a URL that fsspec opens. count: 1000 if None. solver, steps, guidance, grid: the model's own if None. precision,
    backend, cache: as in `fastdiff.profiling.Setting`. batch: samples at once; shard: samples of a unit, a multiple of
    batch.
    format: "npz" (float32, as sampled), "png", "webdataset", or "none" for statistics alone. features: "emoji",
    "inception", "pixels" or an entry point; statistics: "features" to keep them all, "moments" for mean and covariance.
    prompts: sample k has prompts[k % len(prompts)], a prompt or the name of a class; one for all may be a text. For
    bundled models, those that `fastdiff.train` wrote and diffusers folders that take text; None for the model's own.

    workers: processes on this machine; None for this process itself. With `device="cuda"` each has one GPU. threads: of
    each; a share of the cores if None. cluster: the address of a Ray cluster, or "local" for one that is started here;
    then `workers` is how many, as many as fit if None.

    Under torchrun its processes are the workers, and every one of them calls this.

    resume: go on with the job in `out`, or begin it; what is None is as it was there. on_progress(progress) is called
    when a unit is made.

    Units that fail are tried again, see `limits`, and then reported in `Result.failed` while the others are made.

    Raises ValueError for what cannot be, another job or other versions in the store, and workers that differ from this
    process; OSError if the store is full or cannot be reached; RuntimeError if no unit can be made.
    """
    given = {
        "model": model if isinstance(model, str) else None if model is None else model.name, "count": count,
        "first": first, "seed": seed, "solver": solver, "steps": steps, "guidance": guidance, "grid": grid,
        "precision": precision, "backend": backend, "cache": cache, "batch": batch, "shard": shard, "format": format,
        "features": features, "statistics": statistics, "device": device, "prompts": prompts,
    }  # fmt: skip
    expect(
        model is None or isinstance(model, str) or (workers is None and cluster is None),
        "a Subject cannot be sent to other processes; give workers=None, or the model as module:function",
    )
    pool_choice.check(workers, threads)
    store, subject = open_storage(out), model if isinstance(model, Subject) else None
    if threads is not None and workers is None and cluster is None:
        torch.set_num_threads(threads)
    if torchrun.inside():
        expect(
            workers is None and cluster is None, "torchrun's processes are the workers; leave workers and cluster out"
        )
        return _with_peers(store, given, resume or torchrun.restarted(), subject, limits, on_progress)
    with store.alone():
        job = _job(store, given, resume)
        if cluster is None:
            arguments.device("device", job.device)
        manifest = begin(store, job.to_dict(), resume=resume)
        units = job.units()
        records = made_units(store, units)
        if workers is None and cluster is None:
            pool: Pool = InProcess(lambda: Sampler(job, store, subject))
        else:
            order = {"kind": "sample", "job": job.to_dict(), "out": store.name}
            pool = pool_choice.make_pool(order, workers, threads, cluster, job.device)
        with closing(pool):
            driver = Driver(
                pool, limits, lambda who, hello: keep_model(store, manifest, hello["model_sha256"], who), on_progress
            )
            scheduler = driver.run(units, records)
        return conclude(store, job, records, scheduler.given_up, driver.differing, scheduler.workers)


def _with_peers(
    store: Storage, given: Mapping[str, Any], resume: bool, subject: Subject | None, limits: Limits,
    on_progress: Callable[[Progress], None] | None,
) -> Result:  # fmt: skip
    """By the processes of torchrun."""
    peers = torchrun.Peers()
    first = peers.rank == 0
    with store.alone() if first else nullcontext():
        if first:
            job = _job(store, given, resume)
            manifest = begin(store, job.to_dict(), resume=resume)
            made = made_units(store, job.units())
            todo = [number for number in range(len(job.units())) if number not in made]
            runner = Sampler(job, store, subject)
            digest = runner.hello()["model_sha256"]
            keep_model(store, manifest, digest, "rank 0")
            peers.begin({"job": job.to_dict(), "todo": todo}, digest)
        else:
            told = peers.hear("job")["job"]
            job, todo = SampleJob.from_dict(told["job"]), told["todo"]
            runner = Sampler(job, store, subject)
            peers.agree(runner.hello())
        failed, workers = peers.make(job.units(), todo, runner, limits, on_progress if first else None)
        if not first:
            return Result.from_dict(store.name, peers.finish(None))
        result = conclude(store, job, made_units(store, job.units()), failed, [], workers)
        peers.finish(result.to_dict())
        return result


def _job(store: Storage, given: Mapping[str, Any], resume: bool) -> SampleJob:
    """From what is given, completed by the job that is there."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if "model" in chosen and ".py:" in chosen["model"]:  # found from any folder
        chosen["model"] = str(Path(chosen["model"]).resolve())
    before = read_manifest(store) if resume else None
    if before is not None:
        return SampleJob.from_dict({**before["job"], **chosen})
    expect("model" in chosen, f"model must be given: {store.name} holds no job to go on with")
    return SampleJob.from_dict({**DEFAULTS, "count": COUNT, **chosen})
