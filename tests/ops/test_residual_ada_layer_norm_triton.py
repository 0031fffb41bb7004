"""The Triton kernels of residual_ada_layer_norm: numbers in the interpreter, compilation ahead of time; no GPU."""

import pytest
import torch
from triton_process import TARGETS, compile_ahead, interpret

from fastdiff import ops
from fastdiff.runtime import candidates, choice, device


@pytest.mark.parametrize("program", ["numbers", "gradients"])
def test_in_the_interpreter(program):
    interpret("residual_ada_layer_norm", program)


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_ahead_of_time_without_spills(target):
    compile_ahead("residual_ada_layer_norm", target)


@pytest.mark.parametrize(("rows", "channels"), [(4096, 320), (1024, 640), (256, 1280)])
def test_ours_comes_first_and_a_row_a_program_is_another_candidate(rows, channels, monkeypatch, standing_in):
    monkeypatch.setenv("FASTDIFF_TUNE", "0")
    monkeypatch.setattr(device, "ABSENT", device.Device("sm_90", 132, 50 << 20, "sm_90"))
    monkeypatch.setattr(choice, "out_of_reach", lambda name, tensor: None)
    x = torch.zeros(1, dtype=torch.float16).expand(2, rows, channels)
    op = ops.residual_ada_layer_norm
    found = op.decide(op.Arguments(x, x, weight=x[0, 0], bias=x[0, 0]))
    assert (found.name, found.settled) == ("triton", True)
    assert any(c.name.startswith("triton 1 row/") for c in op.candidates(op.Arguments(x, x))) == (channels < 1280)
    assert "the default, not measured" in candidates.lines()[0]
