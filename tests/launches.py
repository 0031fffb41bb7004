"""A stand-in for a GPU in tests: what reaches its driver, and operators that take tensors on the CPU for such on it."""

import contextlib
import copy

import pytest
import torch

pytest.importorskip("triton")

from fastdiff.kernels.ahead_of_time.stand_in import stand_in
from fastdiff.ops import calls
from fastdiff.runtime import choice


@contextlib.contextmanager
def launches(monkeypatch):
    """What the launcher was given, by launch. Operators take tensors on the CPU for such on a GPU."""
    found = []
    monkeypatch.setattr(choice, "_chosen", "triton")
    monkeypatch.setattr(choice, "out_of_reach", lambda name, tensor: None)
    with stand_in("sm_90", lambda *arguments: found.append(arguments)) as device:
        found_on = Launched(found, device)
        yield found_on


class Launched:
    def __init__(self, found, device):
        self.found, self.device = found, device

    def by(self, call):
        """The arguments of the launches that a call makes."""
        self.found.clear()
        call()
        return list(self.found)


def as_on_gpu(op):
    """The operator, with the way that calls on a GPU take, and no call before."""
    found = copy.copy(op)
    found.calls = calls.Calls(found, op.others)
    found.run = lambda a, inplace=False: found.calls.run(a, found.tensors(a), inplace)
    return found


def half(*shape, offset=0):
    numbers = torch.Size(shape).numel()
    return torch.randn(numbers + offset, dtype=torch.float16)[offset:].view(shape)


class OnDevice(torch.Tensor):
    """A tensor that says that it is on another device."""

    def get_device(self):
        return 3
