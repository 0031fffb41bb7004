"""What the sampling loop does between two model calls: nothing but the combine."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff
from fastdiff import engine
from fastdiff.engine import bound
from fastdiff.engine.reference import ReferenceEngine
from fastdiff.grids import make_grid
from fastdiff.noise import CounterNoise
from fastdiff.prediction import get_prediction
from fastdiff.program import Apply, Combine, Output, Program
from fastdiff.program.tracing import trace
from fastdiff.runtime.native import core
from fastdiff.schedules import VPDiscrete
from fastdiff.solvers import SOLVERS

SCHEDULE = VPDiscrete.linear()
INPUTS = engine.Inputs(CounterNoise.of(0, 2))


class Recorder(TorchDispatchMode):
    """The operators that torch runs, in the order that it runs them."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def program(name, steps=8, **options) -> Program:
    return trace(name, SCHEDULE, make_grid("uniform", SCHEDULE, steps), get_prediction("eps"), **options)


LINEAR = [
    name
    for name, s in SOLVERS.items()
    if not s.adaptive and not any(isinstance(i, Apply) for i in program(name).instructions)
]


def operators(name, backend, guidance=None):
    """Those between the second call of the model and the last one."""
    seen = []
    outputs = {n: torch.zeros(n, 3, 8, 8) for n in (2, 4)}

    def model(x, t):
        seen.append(len(recorder.names))
        return outputs[len(x)]

    with fastdiff.use(backend), Recorder() as recorder:
        engine.run(program(name, guidance=guidance), model, torch.zeros(2, 3, 8, 8), INPUTS)
    return recorder.names[seen[1] : seen[-1]]


@pytest.mark.parametrize("name", LINEAR)
def test_no_operator_runs_between_calls(name):
    """The C++ engine allocates nothing and asks torch for nothing; the joint output of a guided call is viewed
    twice."""
    assert operators(name, "cpu") == []
    assert set(operators(name, "cpu", fastdiff.CFG(2.0))) <= {"aten.slice.Tensor"}


@pytest.mark.parametrize("name", LINEAR)
def test_a_device_is_not_waited_for(name, monkeypatch):
    """The reference engine, as it runs on a GPU, reads no value before the end."""
    init = ReferenceEngine.__init__
    monkeypatch.setattr(
        ReferenceEngine, "__init__", lambda *arguments, **options: init(*arguments, **{**options, "deferred": True})
    )
    names = operators(name, "reference")
    assert names
    assert not {"aten._local_scalar_dense.default", "aten.is_nonzero.default", "aten.equal.default"} & set(names)


@pytest.mark.parametrize("bad_call", [1, 4, 8])
def test_a_deferred_break_down_is_named(bad_call, monkeypatch):
    init = ReferenceEngine.__init__
    monkeypatch.setattr(
        ReferenceEngine, "__init__", lambda *arguments, **options: init(*arguments, **{**options, "deferred": True})
    )
    calls = []

    def model(x, t):
        calls.append(t)
        return torch.full_like(x, float("nan") if len(calls) == bad_call else 0.0)

    message = rf"ddim, step {bad_call} of 8 .*is NaN or infinite"
    with fastdiff.use("reference"), pytest.raises(fastdiff.SamplingError, match=message):
        engine.run(program("ddim"), model, torch.zeros(2, 3, 8, 8), INPUTS)


def test_a_gradient_is_called_by_its_name():
    """A Program may call any function that the run's inputs hold, not a classifier alone."""

    def gradient(x, t):
        return 0.1 * x

    def model(x, t):
        return torch.tanh(x)

    traced = program("ddim", guidance=fastdiff.Classifier(gradient, 2.0))
    instructions = tuple(
        replace(i, network="measurement") if getattr(i, "network", None) == "classifier" else i
        for i in traced.instructions
    )
    renamed = replace(traced, instructions=instructions)
    assert renamed != traced
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = engine.run(traced, model, x, replace(INPUTS, gradients={"classifier": gradient}))
    assert torch.equal(engine.run(renamed, model, x, replace(INPUTS, gradients={"measurement": gradient})), expected)
    with pytest.raises(ValueError, match=r"calls 'measurement', got gradients \['classifier'\]"):
        engine.run(renamed, model, x, replace(INPUTS, gradients={"classifier": gradient}))


def test_a_step_that_no_kernel_is_compiled_for_runs_in_the_reference():
    """One output more than the kernels have."""
    x = torch.ones(2, 3)
    for count, expected in ((core.MAX_OUTPUTS, "cpu"), (core.MAX_OUTPUTS + 1, "reference")):
        outputs = tuple(Output(slot, ((("buffer", 0), float(slot)),)) for slot in range(1, count + 1))
        wide = Program("wide", (Combine(outputs),), count + 1, count, 0)
        assert bound.choose_engine(wide, x) == expected
        assert torch.equal(engine.run(wide, torch.nn.Identity(), x, INPUTS), count * x)
    with fastdiff.use("cpu"), pytest.raises(NotImplementedError, match=f"compiled for at most {core.MAX_OUTPUTS} of"):
        engine.run(wide, torch.nn.Identity(), x, INPUTS)
