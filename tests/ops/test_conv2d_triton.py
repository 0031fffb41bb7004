"""The Triton kernel of convolutions: numbers in the interpreter, compilation ahead of time; no GPU."""

import pytest
from triton_process import TARGETS, compile_ahead, interpret


@pytest.mark.parametrize("program", ["numbers", "phases", "candidates", "cuts"])
def test_in_the_interpreter(program):
    interpret("conv2d", program)


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_ahead_of_time_without_spills(target):
    compile_ahead("conv2d", target)
