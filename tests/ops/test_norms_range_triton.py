"""The Triton kernel of the layer norms at the ends of float32's range."""

import pytest
from triton_process import interpret


@pytest.mark.parametrize("program", ["forward", "gradients"])
def test_in_the_interpreter(program):
    interpret("norms_range", program)
