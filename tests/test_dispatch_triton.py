"""Which calls reach the Triton kernels: through the operators and the sampling loop, forward and backward, in Triton's
interpreter; and what is said where they cannot be reached. No GPU is needed."""

import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode
from triton_process import interpret

import fastdiff
from fastdiff.ops import conv2d_algorithms
from fastdiff.runtime import choice, triton

attention = fastdiff.ops.attention
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.parametrize("program", ["operators", "attention_under_transformations", "sampling"])
def test_operators_and_the_sampling_loop_reach_the_kernels(program):
    interpret("dispatch", program)


def test_cuda_tensors_are_taken_to_triton(monkeypatch):
    """By tensors that only look as if they were on a GPU."""
    monkeypatch.setattr(triton, "too_old", lambda device: None)
    with FakeTensorMode():
        for dim, dtype, reason in [
            (40, torch.float16, None),
            (256, torch.float32, None),
            (520, torch.float16, "head dimensions up to 512, not 520"),
            (64, torch.float64, "not torch.float64"),
        ]:
            q = torch.empty(2, 4, 16, dim, dtype=dtype, device="cuda")
            a = attention.Arguments(q, q, q)
            found = attention.unsupported_by_triton(a)
            assert found is None if reason is None else reason in found
            assert attention.takes(a) == (None if reason else "triton")
        with fastdiff.use("reference"):
            assert attention.takes(a) is None
        with fastdiff.use("cpu"), pytest.raises(NotImplementedError, match="C\\+\\+ kernel runs on the CPU"):
            fastdiff.ops.attention(q, q, q)


@NO_GPU
def test_without_a_gpu_triton_is_refused_in_one_line():
    refused = pytest.raises(NotImplementedError, match="triton backend was asked for, but torch sees no GPU")
    with refused as error, fastdiff.use("triton"):
        pass
    assert "\n" not in str(error.value)
    assert choice.current() == "auto"
    code = "import torch, fastdiff; fastdiff.ops.attention(*[torch.zeros(1, 1, 2, 8)] * 3)"
    environment = {**os.environ, "FASTDIFF_BACKEND": "triton"}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert "triton backend was asked for, but torch sees no GPU" in result.stderr.splitlines()[-1]


def test_why_there_is_no_triton(monkeypatch):
    assert triton.missing() is None
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.1.0")
    assert "Triton 3.1.0 is older than 3.2" in triton.missing()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "Triton is not installed" in triton.missing()
    monkeypatch.setattr(triton, "MISSING", triton.missing())
    assert "Triton is not installed" in triton.unavailable()
    with FakeTensorMode():
        q = torch.empty(1, 1, 2, 8, device="cuda")
        a = attention.Arguments(q, q, q)
        assert "Triton is not installed" in attention.unsupported_by_triton(a)
        assert attention.takes(a) is None  # the next best: torch's own


@pytest.mark.parametrize(("capability", "reason"), [((7, 5), "has compute capability 7.5"), ((8, 6), None)])
def test_old_gpus(monkeypatch, capability, reason):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = triton.too_old(torch.device("cuda"))
    assert found is None if reason is None else reason in found


def test_explain(monkeypatch):
    monkeypatch.setattr(choice, "_notes", {})
    monkeypatch.setattr(conv2d_algorithms, "_choices", {})
    found = fastdiff.explain()
    assert {c.op for c in found.choices} == {*fastdiff.ops.OPS, "sampling loop"}
    assert {c.device for c in found.choices} == {"cpu", "cuda"}
    on_cpu = {(c.op, dtype): c for c in found.choices for dtype in c.dtypes if c.device == "cpu"}
    assert on_cpu["attention", "float32"].runs.startswith("C++ (")
    assert on_cpu["attention", "float64"].runs == "PyTorch"
    assert "not torch.float64" in on_cpu["attention", "float64"].why_not["C++"]
    assert len(str(found).splitlines()) == len(found.choices)
    for _ in range(2):
        fastdiff.ops.attention(*[torch.zeros(1, 1, 2, 8, dtype=torch.float64)] * 3)
    (note,) = fastdiff.explain().notes
    assert note.startswith("attention: in PyTorch 2 times, as the C++ kernel takes")
    with fastdiff.use("reference"):
        found = fastdiff.explain().choices
        assert {c.runs for c in found if c.device == "cpu" and (c.dtypes or "loop" in c.op)} == {"PyTorch"}
    with fastdiff.use("cpu"):
        found = fastdiff.explain().choices
        assert {c.runs for c in found if c.device == "cpu" and "float64" in c.dtypes} >= {"an error"}
    held = object()
    assert "may change unseen" in fastdiff.explain(lambda x, t: held and x).model[0]
