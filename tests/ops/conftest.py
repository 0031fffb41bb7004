"""What the operators' tests share."""

import pytest

from fastdiff.runtime.native import core


@pytest.fixture(autouse=True)
def _poisoned_arenas():
    """What the compiled kernels work in begins as NaN, so that a number that nothing was written to is seen."""
    core.poison_arenas(True)
    yield
    core.poison_arenas(False)
