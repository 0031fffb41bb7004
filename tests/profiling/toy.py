"""A model with an exact answer that is quick to call, as `fastdiff profile` takes it: an entry point for the tests."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import nn

from fastdiff.bench.timing import Elapsed
from fastdiff.profiling import Subject, confirming, drawing, finding, load
from fastdiff.schedules import VPDiscrete

SCHEDULE = VPDiscrete.linear()
SHAPE = (3, 8, 8)
CALLS = []
QUICK = dict(solvers=["ddim", "dpmpp-2m"], steps=[4, 8, 16], samples=12, reference_steps=128)  # a sweep


class Toy(nn.Module):
    """eps of independent data that is -0.6 or 0.6 with a spread of 0.2. Fails for batches of `bad_batch`."""

    bad_batch = 3

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.6), requires_grad=False)

    def forward(self, x, t, shift=None):
        CALLS.append(len(x))
        if len(x) == self.bad_batch:
            raise ValueError("batches of 3 are too much")
        point = SCHEDULE.point((float(t[0]) + 1) / SCHEDULE.num_steps)
        alpha, sigma = point.alpha, point.sigma
        variance = (0.2 * alpha) ** 2 + sigma**2
        if shift is not None:
            x = x - alpha * shift[:, None, None, None]
        posterior = torch.tanh(x * alpha * self.mean / variance) * self.mean
        x0 = posterior + alpha * 0.04 / variance * (x - alpha * posterior)
        return (x - alpha * x0) / sigma


def conditions(first, count):
    shift = torch.tensor([0.1 * (k % 2) for k in range(first, first + count)])
    return {"shift": shift}, {"shift": torch.zeros(count)}


def features(x):
    return x.mean((2, 3))


def subject():
    return Subject(
        "toy", Toy(), SHAPE, SCHEDULE, "eps", conditions, features="pixels",
        code="from fastdiff.profiling import get_subject; subject = get_subject('toy:subject')",
    )  # fmt: skip


def unconditional():
    return {"model": Toy(), "shape": SHAPE, "schedule": SCHEDULE, "prediction": "eps"}


class Clock:
    """In place of the timing of runs, and of the time that a search has: every call of the toy takes 10 ms a row, three
    times so by the timing while `busy`, and nothing else takes any."""

    def __init__(self, monkeypatch):
        self.busy, self.timed = False, []
        CALLS.clear()
        monkeypatch.setattr(drawing, "timed", self.of)
        for module in (finding, confirming):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 0.01 * sum(CALLS)))
        monkeypatch.setattr(load, "_busy", lambda: None)  # that others are there is not known

    @contextmanager
    def of(self, _device):
        elapsed, before = Elapsed(), len(CALLS)
        yield elapsed
        elapsed.seconds = sum(CALLS[before:]) * 0.01 * (3 if self.busy else 1)
        self.timed.append((len(CALLS) - before, self.busy))
