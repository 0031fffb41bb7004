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

# The same call under two choice, with gradients; and which kernels ran.
OPERATORS = """
import torch, fastdiff
from fastdiff.kernels import (
    ada_layer_norm, ada_layer_norm_backward, attention, attention_backward, group_norm_silu, group_norm_silu_backward,
    linear_combine)

ran = []
def counted(module, name):
    function = getattr(module, name)
    setattr(module, name, lambda *a, **k: (ran.append(name), function(*a, **k))[1])
for module, name in [
    (ada_layer_norm, "ada_layer_norm"), (ada_layer_norm_backward, "ada_layer_norm_backward"),
    (attention, "attention_forward"), (attention_backward, "attention_backward"),
    (group_norm_silu, "group_norm_silu"), (group_norm_silu_backward, "group_norm_silu_backward"),
    (linear_combine, "linear_combine")]:
    counted(module, name)

torch.manual_seed(0)
def leaf(*shape):
    return torch.randn(shape).requires_grad_()
x, y, row, vectors = leaf(2, 4, 8), leaf(2, 4, 8), [leaf(2, 1, 8) for _ in range(2)], [leaf(8) for _ in range(2)]
image, adaptive = leaf(2, 8, 3, 5), [leaf(2, 8) for _ in range(2)]
video = leaf(2, 4, 2, 3, 2).detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
heads = [leaf(1, 2, n, 16) for n in (5, 7, 7)]
# `mask` is of no kernel's gradient; `frozen` wants none.
frozen, mask = torch.randn(2, 1, 8), torch.rand(5, 7) < 0.7
cases = {
    "ada_layer_norm": [
        (lambda a, b, c, w, v: fastdiff.ops.ada_layer_norm(a, b, c, weight=w, bias=v), [x, *row, *vectors]),
        (lambda a, b: fastdiff.ops.ada_layer_norm(a, frozen, b), [x.transpose(1, 2).contiguous().mT, row[0]]),
    ],
    "group_norm_silu": [
        (lambda a, w, v, s, t: fastdiff.ops.group_norm_silu(a, 4, w, v, scale=s, shift=t),
         [image, *vectors, *adaptive]),
        (lambda a: fastdiff.ops.group_norm_silu(a, 2, activation=None), [video]),
    ],
    "attention": [
        (fastdiff.ops.attention, heads),
        (lambda q, k, v: fastdiff.ops.attention(q, k, v, mask=mask, scale=0.3), heads),
    ],
    "linear_combine": [(lambda a, b: fastdiff.ops.linear_combine([[1.5, -2.0]], [a, b])[0], [x, y])],
}
def run(function, leaves, backend):
    with fastdiff.use(backend):
        out = function(*leaves)
        return out, *torch.autograd.grad(out.square().sum(), leaves)

for op, calls in cases.items():
    for function, leaves in calls:
        ran.clear()
        theirs = run(function, leaves, "reference")
        assert not ran
        ours = run(function, leaves, "triton")
        assert len(ran) == 2 and all(op in name for name in ran), ran
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.shape == other.shape and mine.dtype == other.dtype
            assert torch.allclose(mine, other, rtol=1e-4, atol=1e-4), op
        assert ours[0].stride() == theirs[0].stride() or op == "attention"

with fastdiff.use("triton"):
    compiled = torch.compile(lambda *a: cases["attention"][1][0](*a).sum(), backend="aot_eager", fullgraph=True)
    ran.clear()
    gradients = torch.autograd.grad(compiled(*heads), heads)
    assert ran == ["attention_forward", "attention_backward"]
    # A gradient of a gradient goes through PyTorch.
    (first,) = torch.autograd.grad(fastdiff.ops.attention(*heads).square().sum(), heads[:1], create_graph=True)
    assert torch.autograd.grad(first.sum(), heads[1])[0].abs().sum() > 0
    out, maps = fastdiff.ops.attention(*heads, return_maps=True)
    assert torch.allclose(maps.sum(-1), torch.ones(1, 2, 5)) and torch.allclose(maps @ heads[2], out, atol=1e-6)
    for dim, dtype, message in [(300, torch.float32, "up to 256, not 300"), (8, torch.float64, "not torch.float64")]:
        q = torch.zeros(1, 1, 2, dim, dtype=dtype)
        try:
            fastdiff.ops.attention(q, q, q)
            raise AssertionError("an error was expected")
        except NotImplementedError as error:
            assert message in str(error) and "triton backend was asked for" in str(error)

    ran.clear()
    model, options = lambda x, t: torch.tanh(x), dict(schedule="linear", prediction="eps", steps=3, seed=1)
    ours = fastdiff.sample(model, (1, 3, 4, 4), **options)
with fastdiff.use("reference"):
    assert torch.equal(ours, fastdiff.sample(model, (1, 3, 4, 4), **options))
assert "Triton" in {c.runs for c in fastdiff.explain().choices} or fastdiff.runtime.choice.current() == "auto"
print("ok")
"""


def test_operators_and_the_sampling_loop_reach_the_kernels():
    interpret(OPERATORS)


def test_cuda_tensors_are_taken_to_triton(monkeypatch):
    """By tensors that only look as if they were on a GPU."""
    monkeypatch.setattr(triton, "too_old", lambda device: None)
    with FakeTensorMode():
        for dim, dtype, reason in [
            (40, torch.float16, None),
            (256, torch.float32, None),
            (512, torch.float16, "head dimensions up to 256, not 512"),
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
