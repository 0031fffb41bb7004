"""A job that takes milliseconds, for the tests of fastdiff.distributed: an entry point, and models that misbehave.

Variables of the environment say how: BREAK is what happens to whoever makes sample BREAK_AT (see `misbehave`).
"""

from __future__ import annotations

import os
import signal
import time

import torch
from torch import nn

from fastdiff.profiling import Subject
from fastdiff.schedules import VPDiscrete

SCHEDULE = VPDiscrete.linear()
SHAPE = (3, 8, 8)
MODEL = f"{__file__}:subject"
JOB = dict(count=22, batch=4, shard=4, solver="ddim", steps=3)  # units of 4, the last of 2


class Small(nn.Module):
    """A linear map of the pixels: its rounding depends on how many rows a batch has, as that of real models does."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(192, 192, generator=generator) / 192**0.5, requires_grad=False)

    def forward(self, x, t, number):
        self.misbehave(number)
        return torch.tanh(x.flatten(1) @ self.weight).view_as(x) * 0.9 + 0.001 * number[:, None, None, None]

    def misbehave(self, number):
        how = os.environ.get("BREAK")
        if how == "slow":
            time.sleep(float(os.environ["BREAK_SECONDS"]))
        if how is None or int(os.environ.get("BREAK_AT", "-1")) not in number.tolist():
            return
        if how == "error":
            raise RuntimeError("poisoned")
        if how == "nan":
            self.weight.fill_(float("nan"))
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "late":
            try:  # who makes the file first is the one that is late
                os.close(os.open(os.environ["BREAK_ONCE"], os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            time.sleep(600)


def conditions(first, count):
    return {"number": torch.arange(first, first + count)}, None


def subject():
    return Subject("small", Small(), SHAPE, SCHEDULE, "eps", conditions, features="pixels")
