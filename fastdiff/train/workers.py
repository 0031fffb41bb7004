"""The processes of a run: one, or those that torchrun starts, which share the batches of each step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.train.objective import Objective
from fastdiff.train.run import Run


class _Step(nn.Module):
    """The objective's loss as one call of a module, so that DistributedDataParallel sees all of it."""

    def __init__(self, objective: Objective, network: nn.Module) -> None:
        super().__init__()
        self.objective, self.network = objective, network

    def forward(self, generator: torch.Generator) -> Tensor:
        return self.objective.loss(self.network, generator)


class Workers:
    """Process `rank` of `count` that train one network on `device` each."""

    def __init__(self, rank: int, count: int, device: torch.device) -> None:
        self.rank, self.count, self.device = rank, count, device

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, run: Run) -> range:
        """The batches of a step that are this process's."""
        each = run.accumulate // self.count
        return range(self.rank * each, (self.rank + 1) * each)

    def step(self, objective: Objective, network: nn.Module) -> nn.Module:
        """A module whose call is the loss of a batch. Its gradients are averaged over the processes."""
        step = _Step(objective, network)
        return step if self.count == 1 else nn.parallel.DistributedDataParallel(step)

    def alone(self, step: nn.Module) -> AbstractContextManager:
        """Gradients stay in this process inside the block."""
        return step.no_sync() if isinstance(step, nn.parallel.DistributedDataParallel) else nullcontext()

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes, which wait for each other."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(sums)
        return sums.tolist()


def started() -> tuple[int, int]:
    """(number of this process, number of processes) of a group that is there, or that torchrun has prepared."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def own_device(device: torch.device | str) -> torch.device:
    """The GPU of this process among those of torchrun, where `device` is "cuda" without a number."""
    where = torch.device(device)
    if where.type == "cuda" and where.index is None and started()[1] > 1:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return where


@contextmanager
def joined(device: torch.device, run: Run) -> Iterator[Workers]:
    """The processes of this run; a group that is not there yet is made, and ends with the block.

    Raises ValueError if their number does not divide `run.accumulate`, or if this PyTorch cannot join them.
    """
    rank, count = started()
    expect(
        run.accumulate % count == 0,
        f"accumulate must be a multiple of the {count} processes, got {run.accumulate}; {count} gives each one batch "
        "a step",
    )
    distributed = torch.distributed
    expect(count == 1 or distributed.is_available(), f"there are {count} processes, and this PyTorch cannot join them")
    made = count > 1 and not distributed.is_initialized()
    if device.type == "cuda" and count > 1:
        torch.cuda.set_device(device)
    if made:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Workers(rank, count, device)
    finally:
        if made:
            distributed.destroy_process_group()
