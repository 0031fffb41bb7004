"""A device that is not there, for tests of what is chosen on a GPU: a timer with a table, and a clock that it moves."""

from __future__ import annotations

import torch

from fastdiff.runtime import tuning
from fastdiff.runtime.candidates import Candidate
from fastdiff.runtime.tuning import Problem, Tuner


class Device:
    """Candidates by name with their times in seconds; what ran, and what was timed. price: seconds that timing one
    takes."""

    device_type = "cpu"

    def __init__(self, price=0.0, **seconds):
        self.seconds, self.price = {name.replace("_", " "): s for name, s in seconds.items()}, price
        self.now, self.ran, self.timed = 0.0, [], []

    def __call__(self, run, device):
        run()
        self.timed.append(self.ran[-1])
        self.now += self.price
        return self.seconds[self.ran[-1]]

    def clock(self):
        return self.now

    def tuner(self):
        """As in a process that has just begun."""
        return Tuner(timer=self, clock=self.clock)

    def candidate(self, name, compute=torch.sin):
        """One that gives compute(x)."""

        def run(x):
            self.ran.append(name)
            return compute(x)

        return Candidate(name, run)

    def problem(self, key="sin", **computes):
        """Of sin(x), by each candidate; computes: how one computes it, by name, if not by torch.sin."""
        candidates = [self.candidate(name, computes.get(name, torch.sin)) for name in self.seconds]
        return Problem(
            key, f"{key} float32 x 64", torch.device("cpu"), candidates, make=lambda: torch.linspace(0, 1, 64),
            reference=torch.sin, oracle=lambda x: torch.sin(x.double()),
        )  # fmt: skip


def installed(monkeypatch, tmp_path, device):
    """The tuner of the process, with this device and a file of its own."""
    monkeypatch.setenv("FASTDIFF_TUNE_FILE", str(tmp_path / "new" / "times.json"))
    monkeypatch.delenv("FASTDIFF_TUNE", raising=False)
    monkeypatch.setattr(tuning, "tuner", device.tuner())
    return tuning.tuner
