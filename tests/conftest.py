"""Fixtures and assertions that many tests share."""

from __future__ import annotations

import logging
import math
import os
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # threads that wait must not take the cores that the other workers compute on
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

import numpy as np
import pytest
import torch
from torch import Tensor

# `python -m pytest` puts the current folder first, where the sources are: the installed package is what is tested.
ROOT = Path(__file__).parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

from fastdiff.runtime.native import core  # noqa: E402

# Dynamo writes a protocol of every capture where this logger has a handler, and pytest gives one to each logger that
# does not propagate: 5% of a capture, and thousands of lines beside a failure.
logging.getLogger("torch.__trace").propagate = True


def pytest_collection_modifyitems(config, items):
    if "long" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes long: python -m pytest -m long"))


@pytest.fixture(autouse=True)
def _outside_the_sources(tmp_path, monkeypatch):
    """Commands that tests start must not find the sources either, nor run a pytest with the options of this one, nor
    another test the modules in a folder that this one makes importable."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=core.supported_isas())
def isa(request):
    """Run the test once with each instruction set that this machine has."""
    before = core.isa()
    core.select_isa(request.param)
    yield request.param
    core.select_isa(before)


def assert_no_worse(ours: Tensor, theirs: Tensor, oracle: Tensor, *, factor: float = 2.0, floor: float = 0.0) -> None:
    """The error of `ours` against the float64 oracle is at most `factor` times that of `theirs`, plus `floor`."""
    assert ours.shape == oracle.shape
    assert torch.isfinite(ours).all()
    error = (ours.double() - oracle).abs().max().item() if ours.numel() else 0.0
    allowed = (theirs.double() - oracle).abs().max().item() if ours.numel() else 0.0
    assert error <= factor * allowed + floor, f"error {error:.3e}, torch's {allowed:.3e}, floor {floor:.3e}"


def floor(oracle: Tensor, dtype: torch.dtype, terms: int = 1, size: float = 0.0, more: float = 0.0) -> float:
    """What rounding alone may make of a result of this dtype, of which each number is the sum of so many terms.

    The result is rounded once, to its dtype. A sum in halves rounds log2(terms) times, to float32 at least, and such
    errors grow with the root of their number. more: further roundings to that type. All are of the largest number of
    the oracle, or of `size` if the terms are larger than that and cancel.
    """
    largest = max(size, float(oracle.detach().abs().max()) if oracle.numel() else 0.0)
    summed_in = torch.promote_types(dtype, torch.float32)
    roundings = math.log2(max(1, terms)) ** 0.5 + more
    return largest * (torch.finfo(dtype).eps + roundings * torch.finfo(summed_in).eps)


def relative_error(x: Tensor, expected: Tensor) -> float:
    """Largest difference in units of the RMS of what is expected."""
    return float((x - expected).abs().max() / expected.square().mean().sqrt())


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def on_cuda(monkeypatch):
    """Runs under use("auto") take the engine of a GPU, with tapes for its graphs."""
    from tape import take_the_place_of_cuda

    take_the_place_of_cuda(monkeypatch)
