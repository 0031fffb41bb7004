"""What the operators' tests share."""

import functools
import math
import sys

import pytest
import torch
from stand_in_device import Device, installed

from fastdiff.ops import OPS, conv2d_weights, deciding
from fastdiff.ops.conv2d_algorithms import ALGORITHMS
from fastdiff.runtime import candidates
from fastdiff.runtime.native import core


def filled_with_nan(make):
    """The function that makes a tensor without values, made to fill it with NaN."""

    @functools.wraps(make)
    def made(*arguments, **options):
        tensor = make(*arguments, **options)
        return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

    return made


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch):
    """Results, gradients, packed weights and what the compiled kernels work in begin as NaN, so that a number that
    nothing was written to is seen."""
    for module in (torch, conv2d_weights, *(sys.modules[op.__module__] for op in OPS.values())):
        for name in ("empty", "empty_like"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, filled_with_nan(getattr(module, name)))
    core.poison_arenas(True)
    yield
    core.poison_arenas(False)


# Instruction sets of this machine, and the algorithms of conv2d that they have.
CONVOLUTIONS = [
    (isa, name) for isa in core.supported_isas() for name in ALGORITHMS if isa == "amx" or "amx" not in name
]


@pytest.fixture(params=CONVOLUTIONS, ids="-".join)
def algorithm(request):
    """Run the test once with each algorithm of conv2d, on each instruction set that has it."""
    before = core.isa()
    isa, name = request.param
    core.select_isa(isa)
    yield name
    core.select_isa(before)


@pytest.fixture
def matrix_units():
    """Run the test on the instruction set that has them."""
    before = core.isa()
    core.select_isa("amx")
    yield
    core.select_isa(before)


@pytest.fixture
def standing_in(monkeypatch, tmp_path):
    """A tuner that has a device of the CPU's type and no time for it."""
    stand_in = Device()
    installed(monkeypatch, tmp_path, stand_in)
    monkeypatch.setenv("FASTDIFF_TUNE", "0")
    yield stand_in
    deciding.forget()
    candidates.forget()


@pytest.fixture
def times_file(tmp_path, monkeypatch):
    """Where the times of a process that has just begun are kept."""
    monkeypatch.setenv("FASTDIFF_TUNE_FILE", str(tmp_path / "new" / "times.json"))
    monkeypatch.delenv("FASTDIFF_TUNE", raising=False)
    candidates.forget()
    yield tmp_path / "new" / "times.json"
    candidates.forget()
