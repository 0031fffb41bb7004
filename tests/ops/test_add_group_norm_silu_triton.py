"""The Triton kernels of add_group_norm_silu: in the interpreter, and compiled ahead of time. No GPU is needed."""

import pytest
from triton_process import TARGETS, compile_ahead, interpret


@pytest.mark.parametrize("program", ["numbers", "operator"])
def test_in_the_interpreter(program):
    interpret("add_group_norm_silu", program)


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_ahead_of_time_without_spills(target):
    compile_ahead("add_group_norm_silu", target)
