"""The Triton kernels of ada_layer_norm: numbers in the interpreter, compilation ahead of time. No GPU is needed."""

import pytest
from triton_process import TARGETS, compile_ahead, interpret


@pytest.mark.parametrize("program", ["numbers", "rows", "plans", "gradients"])
def test_in_the_interpreter(program):
    interpret("ada_layer_norm", program)


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_ahead_of_time_without_spills(target):
    compile_ahead("ada_layer_norm", target)
