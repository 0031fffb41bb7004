"""Which other workers a job has: processes of this machine, or those of a Ray cluster."""

from __future__ import annotations

import os
from typing import Any

import torch

from fastdiff import arguments
from fastdiff.distributed.on_ray import RayPool
from fastdiff.distributed.pools import Pool
from fastdiff.distributed.processes import Processes


def check(workers: int | None, threads: int | None) -> None:
    """Raises ValueError for numbers that no pool could have."""
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None:
            arguments.whole(name, value, 1)


def make_pool(
    order: dict[str, Any], workers: int | None, threads: int | None, cluster: str | None, device: str
) -> Pool:
    """order: what a worker is told, see `worker`. workers must be given without a cluster. threads: of each; a share of
    the cores of this machine if None, 1 on a cluster."""
    gpus = torch.device(device).type == "cuda"
    if cluster is not None:
        return RayPool(order, cluster, workers, threads, gpus=gpus)
    assert workers is not None
    share = threads or max(1, _cores() // workers)
    return Processes({**order, "threads": share}, workers, gpus=torch.cuda.device_count() if gpus else 0)


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
