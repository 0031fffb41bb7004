"""Where the tests of this folder run: `python -m pytest tests/gpu` on a machine with a GPU, in less than two minutes.

FASTDIFF_TEST_DEVICE=cpu runs them on the CPU, but for those that need a GPU's own kernels or graphs: so that what is
wrong in a test is found where there is no GPU. Without a GPU and without that variable all are skipped, with a reason.
"""

from __future__ import annotations

import os

import pytest
import torch

from fastdiff.runtime import triton

DEVICE = os.environ.get("FASTDIFF_TEST_DEVICE", "cuda")
HERE = os.path.dirname(__file__)


def pytest_configure(config):
    config.addinivalue_line("markers", "only_gpu: means nothing on the CPU")
    config.addinivalue_line("markers", "needs_triton: runs Triton's kernels")


def pytest_collection_modifyitems(items):
    for item in items:
        if not str(item.path).startswith(HERE):
            continue
        item.add_marker(pytest.mark.gpu)
        on_gpu = DEVICE != "cpu" and torch.cuda.is_available()
        if not on_gpu and item.get_closest_marker("only_gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and torch sees none or the CPU was asked for"))
        elif not on_gpu and DEVICE != "cpu":
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU (FASTDIFF_TEST_DEVICE=cpu runs it on the CPU)"))
        elif item.get_closest_marker("needs_triton") and triton.unavailable() is not None:
            item.add_marker(pytest.mark.skip(reason=str(triton.unavailable())))


@pytest.fixture
def device():
    """The name of the device."""
    return DEVICE
