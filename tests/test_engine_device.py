"""The engine of a GPU on the CPU, where the kernels' own function runs: its numbers, launched and replayed."""

import math

import pytest
import torch
from small_network import Net
from tape import COMMON, both
from triton_process import interpret

import fastdiff
from fastdiff import SamplingError, sample
from fastdiff.engine import steps
from fastdiff.runtime import cuda, graphs
from fastdiff.solvers import SOLVERS

PROGRAMS = [name for name, solver in SOLVERS.items() if not solver.adaptive]


@pytest.mark.parametrize("solver", PROGRAMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_the_same_bits_as_the_reference(on_cuda, solver, dtype):
    """Launches, for what is no module."""
    pointwise = lambda x, t: torch.tanh(x)  # noqa: E731
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours, theirs = both(pointwise, x, solver=solver, seed=3, **COMMON)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("device", [None, "meta"])
def test_the_default_dtype_and_device_change_nothing(on_cuda, dtype, device):
    net = Net()
    plain = sample(net, (2, 3, 8, 8), seed=3, solver="ddpm", **COMMON)
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        found = [sample(net, (2, 3, 8, 8), seed=3, solver="ddpm", **COMMON) for _ in range(3)]
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert all(torch.equal(each, plain) for each in found)


def test_thresholds_and_given_noise(on_cuda):
    net = Net()
    for _ in range(3):
        for options in (
            dict(threshold=0.5),
            dict(solver="ddpm", noise=torch.randn(6, 2, 3, 8, 8)),
            dict(solver="ddpm"),
        ):
            ours, theirs = both(net, (2, 3, 8, 8), seed=1, **{**COMMON, **options})
            assert torch.equal(ours, theirs)


def test_callbacks_see_the_states(on_cuda):
    seen = {}
    for backend in ("auto", "reference"):
        with fastdiff.use(backend):
            states = seen[backend] = []
            sample(Net(), (2, 3, 8, 8), seed=1, callback=lambda i, x, to=states: to.append(x.clone()), **COMMON)
    assert len(seen["auto"]) == 6
    assert all(torch.equal(a, b) for a, b in zip(seen["auto"], seen["reference"]))


def test_a_break_down_is_named(on_cuda):
    class Bad(Net):
        def forward(self, x, t):
            return torch.where(t[:, None, None, None] < self.limit, math.nan, super().forward(x, t))

    net = Bad()
    net.register_buffer("limit", torch.tensor(-1.0))
    for _ in range(3):
        sample(net, (2, 3, 8, 8), seed=0, solver="ddim", **COMMON)
    assert graphs.explain(net) == ["a CUDA graph"]
    net.limit.fill_(600)
    with pytest.raises(SamplingError, match=r"ddim, step 4 of 6 .*is NaN or infinite"):
        sample(net, (2, 3, 8, 8), seed=0, solver="ddim", **COMMON)
    net.limit.fill_(-1)
    ours, theirs = both(net, (2, 3, 8, 8), seed=0, solver="ddim", **COMMON)
    assert torch.equal(ours, theirs)
    with pytest.raises(SamplingError, match="initial state"):
        sample(net, torch.full((2, 3, 8, 8), math.nan), solver="ddim", **COMMON)


def test_why_there_are_no_kernels():
    made, reason = steps.choose(torch.device("cpu"))
    assert made is None
    assert "CUDA devices only" in reason
    if not torch.cuda.is_available():
        assert cuda.unavailable()
        made, reason = steps.choose(torch.device("cuda"))
        assert made is None
        assert cuda.unavailable() in reason


@pytest.mark.skipif(cuda.library() is None, reason="installed without the CUDA kernels")
def test_the_library_loads_without_a_driver():
    assert cuda.step_address()
    assert cuda.build().split(".")[0].isdigit()
    assert cuda.error(100) == "no CUDA-capable device is detected"


def test_the_engine_with_triton_in_the_interpreter():
    interpret("engine", "samples")
