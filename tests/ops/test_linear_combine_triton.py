"""The Triton kernel of linear_combine: numbers in the interpreter, compilation ahead of time. No GPU is needed."""

import pytest
from triton_process import TARGETS, compile_ahead, interpret


@pytest.mark.parametrize("program", ["numbers", "steps"])
def test_in_the_interpreter(program):
    interpret("linear_combine", program)


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_ahead_of_time_without_spills(target):
    compile_ahead("linear_combine", target)
