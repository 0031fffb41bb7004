"""FASTDIFF_EXACT=1: no products in bfloat16 terms and no transforms."""

import os
import subprocess
import sys

import pytest
import torch
from operators import slower, unsupported

import fastdiff
from fastdiff.bench.cases.conv2d import make
from fastdiff.ops import conv2d, linear
from fastdiff.runtime import choice
from fastdiff.runtime.native import core


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_what_runs():
    code = """
import torch, fastdiff
from fastdiff.runtime.native import core
x, weight = torch.randn(1, 64, 8, 8), torch.randn(64, 64, 3, 3)
assert torch.equal(fastdiff.ops.conv2d(x, weight), torch.nn.functional.conv2d(x, weight, padding=1))
assert not core.has_linear()
print(fastdiff.explain())
"""
    result = python(code, FASTDIFF_EXACT="1", FASTDIFF_ISA="")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert any(line.startswith("conv2d on cpu (float32): PyTorch") and "FASTDIFF_EXACT" in line for line in lines)
    assert any(line.startswith("linear on cpu (float32): PyTorch") and "FASTDIFF_EXACT" in line for line in lines)
    assert any(line.startswith("attention on cpu") and "C++" in line for line in lines)


@pytest.mark.skipif("amx" not in core.supported_isas(), reason="this machine has no AMX")
def test_amx_contradicts_it():
    result = python("from fastdiff.runtime.native import core; core.isa()", FASTDIFF_EXACT="1", FASTDIFF_ISA="amx")
    assert result.returncode != 0
    assert "FASTDIFF_EXACT=1 rules out" in result.stderr


def test_one_process(monkeypatch):
    inputs = make((1, 64, 8, 8), 64)
    before = conv2d.plain(**inputs)
    assert unsupported(conv2d, **inputs) is None
    assert slower(conv2d, **inputs) is None
    monkeypatch.setattr(choice, "_exact", True)
    assert "FASTDIFF_EXACT=1" in unsupported(conv2d, **inputs)
    named = torch.ops.fastdiff.conv2d(*conv2d.arguments(**inputs))  # of a graph from elsewhere
    assert torch.equal(named, before)
    assert named.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(conv2d(**inputs), before)
    with fastdiff.use("cpu"), pytest.raises(NotImplementedError, match="FASTDIFF_EXACT=1"):
        conv2d(**inputs)
    if not core.has_linear():
        assert "FASTDIFF_EXACT=1" in unsupported(linear, torch.randn(1, 8, 8), torch.randn(8, 8))
