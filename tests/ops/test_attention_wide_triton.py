"""Attention of heads wider than 256 in Triton: numbers in the interpreter, compilation ahead of time, what is refused.

No GPU is needed."""

import pytest
import torch
from triton_process import TARGETS, compile_ahead, interpret

from fastdiff.kernels.attention import attention_backward, attention_forward, attention_maps
from fastdiff.ops import attention
from fastdiff.runtime import choice


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_numbers_in_the_interpreter(dtype):
    interpret("attention_wide", "numbers", dtype)


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_ahead_of_time_without_spills(target):
    compile_ahead("attention_wide", target)


def test_gradients_maps_and_float32_are_refused(monkeypatch):
    q = torch.zeros(1, 1, 4, 512, dtype=torch.float16)
    lse = torch.zeros(1, 1, 4)
    with pytest.raises(ValueError, match="gradients are computed of head dimensions up to 256, not 512"):
        attention_backward(q, q, q, q, q, lse)
    with pytest.raises(ValueError, match="maps are made of head dimensions up to 256, not 512"):
        attention_maps(q, q, lse)
    with pytest.raises(ValueError, match="forward pass in half types, got 512 for forward in single"):
        attention_forward(q.float(), q.float(), q.float())
    monkeypatch.setattr(choice, "out_of_reach", lambda name, tensor: None)
    a = attention.Arguments(q, q, q)
    assert attention.unsupported_by_triton(a) is None
    single = attention.Arguments(q.float(), q.float(), q.float())
    leaf = q.clone().requires_grad_()
    for other in (a._replace(return_maps=True), a._replace(return_lse=True), single, attention.Arguments(leaf, q, q)):
        assert "up to 256, not 512 (wider ones in half types" in attention.unsupported_by_triton(other)
