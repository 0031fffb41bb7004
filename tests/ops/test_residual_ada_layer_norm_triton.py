"""The Triton kernels of residual_ada_layer_norm: numbers in the interpreter, compilation ahead of time; no GPU."""

import pytest
from triton_process import TARGETS, compile_ahead, interpret


@pytest.mark.parametrize("program", ["numbers", "gradients"])
def test_in_the_interpreter(program):
    interpret("residual_ada_layer_norm", program)


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_ahead_of_time_without_spills(target):
    compile_ahead("residual_ada_layer_norm", target)
