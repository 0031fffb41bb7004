"""Workers on a Ray cluster: actors with a share of the cores, or one GPU, on any of its machines. Needs the extra
`ray`."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from fastdiff.distributed.pools import REFUSALS, Event, Runner, Unit, failure
from fastdiff.errors import expect

LOCAL = "local"
SECONDS = 5.0  # to reach a cluster
STARTS = 3


class RayPool:
    """address: "local" to start a cluster on this machine, "auto" for the one that runs here, or where one is,
    HOST:PORT or ray://HOST:PORT. order: what each worker is told, see `worker`. count: of workers, None for as many as
    fit. threads: of each, 1 if None.

    Raises ImportError without Ray, ValueError for a cluster that cannot be reached or has no room for a worker.
    """

    def __init__(
        self, order: Mapping[str, Any], address: str, count: int | None, threads: int | None, *, gpus: bool
    ) -> None:
        self.ray = _ray()
        self.order = {**order, "threads": threads or 1, "folder": os.getcwd()}
        self.address, self.count, self.gpus = address, count, gpus
        self._actors: dict[str, Any] = {}
        self._waiting: dict[Any, str] = {}  # what a worker will answer -> the worker
        self._started = 0
        self._connected = False

    def start(self) -> None:
        if not self.ray.is_initialized():
            self._connect()
            self._connected = True
        need = self._need()
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        # Of each node by itself: two with one core have no room for a worker of two, which would wait forever.
        fit = sum(min(int(node.get(kind, 0) // amount) for kind, amount in need.items()) for node in nodes)
        wanted = " and ".join(f"{amount} {kind}{'s' * (amount != 1)}" for kind, amount in need.items())
        expect(fit > 0, f"the Ray cluster {self.address} has no room for a worker, which needs {wanted}")
        for _ in range(fit if self.count is None else min(self.count, fit)):
            self.replace()

    def replace(self) -> None:
        need = self._need()
        # Its unit is tried again by the scheduler, which counts how often.
        options = {"num_cpus": need["CPU"], "num_gpus": need.get("GPU", 0), "max_restarts": 0, "max_task_retries": 0}
        name = str(self._started)
        self._started += 1
        self._actors[name] = self.ray.remote(**options)(Actor).remote(dict(self.order))
        self._waiting[self._actors[name].hello.remote()] = name

    def send(self, worker: str, unit: Unit) -> None:
        self._waiting[self._actors[worker].make.remote(list(unit))] = worker

    def events(self, seconds: float) -> list[Event]:
        answered, _ = self.ray.wait(list(self._waiting), num_returns=1, timeout=seconds)
        if answered and len(self._waiting) > 1:
            answered, _ = self.ray.wait(list(self._waiting), num_returns=len(self._waiting), timeout=0)
        return [self._event(answer) for answer in answered]

    def stop(self, worker: str) -> None:
        if worker in self._actors:
            self.ray.kill(self._actors[worker])

    def close(self) -> None:
        for actor in self._actors.values():
            self.ray.kill(actor)
        self._actors, self._waiting = {}, {}
        if self._connected:
            self.ray.shutdown()
            self._connected = False

    def _event(self, answer: Any) -> Event:
        worker = self._waiting.pop(answer)
        try:
            what, data = self.ray.get(answer)
        except self.ray.exceptions.RayError as error:
            del self._actors[worker]
            return Event(worker, "died", f"worker {worker} is gone: {' '.join(str(error).split())[:300]}")
        return Event(worker, what, data)

    def _need(self) -> dict[str, int]:
        return {"CPU": self.order["threads"], **({"GPU": 1} if self.gpus else {})}

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address == LOCAL:
            self._start_cluster(quiet)
            return
        _refuse_unreachable(self.address)
        try:
            self.ray.init(address=self.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())[:300]
            raise ValueError(f"cannot reach the Ray cluster {self.address}: {text}") from error

    def _start_cluster(self, options: Mapping[str, Any]) -> None:
        """On a busy machine it takes longer than the half minute that Ray waits for it."""
        for number in range(STARTS):
            try:
                self.ray.init(address="local", include_dashboard=False, **options)
                return
            except Exception as error:  # of no class of its own
                self.ray.shutdown()
                if number == STARTS - 1:
                    raise RuntimeError(f"Ray could not start a cluster on this machine: {error}") from error


class Actor:
    """A worker, in a process of Ray's. Its methods return what an `Event` holds."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.runner: Runner | None = None

    def hello(self) -> tuple[str, Any]:
        """Loads the model."""
        import torch

        from fastdiff.distributed.worker import make_runner

        torch.set_num_threads(self.order["threads"])
        if os.path.isdir(self.order["folder"]):  # where modules of the user's are looked for
            os.chdir(self.order["folder"])
        try:
            self.runner = make_runner(self.order)
        except REFUSALS as error:
            return "refused", failure(error)["text"]
        return "ready", self.runner.hello()

    def make(self, unit: Unit) -> tuple[str, Any]:
        """Make a unit."""
        assert self.runner is not None
        try:
            return "done", self.runner.make(unit)
        except Exception as error:
            return "failed", failure(error)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(f'a cluster needs Ray: pip install "torch-fastdiff[ray]" ({error})') from error
    return ray


def _refuse_unreachable(address: str) -> None:
    """Raises ValueError for an address where nobody answers; Ray itself tries for a minute."""
    if address == "auto":
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = parts.port
    except ValueError:
        port = None
    expect(
        bool(parts.hostname) and port is not None,
        f"the address of a Ray cluster must be HOST:PORT, ray://HOST:PORT, auto or local, got {address!r}",
    )
    try:
        socket.create_connection((parts.hostname or "", port or 0), SECONDS).close()
    except OSError as error:
        raise ValueError(f"cannot reach the Ray cluster {address}: {error}") from error
