"""What a step function of one's own must not do is refused in words that whoever wrote it understands."""

import math

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.prediction import get_prediction
from fastdiff.program.linear_form import LinearForm
from fastdiff.schedules import VPDiscrete
from fastdiff.solvers.registry import Solver

VP = VPDiscrete.linear()


def solver(step, **options):
    return Solver("mine", step, 1, 1, 0, "uniform", "a test", stochastic=False, **options)


def drawn(step):
    """A solver whose step is given x0 beside the rest."""
    return solver(lambda model, x, s, t, history: step(x, model.x0(x, s), s, t))


REFUSED = {
    "if": (lambda x, x0, s, t: x if x0 > 0 else -x, "the step uses > on a quantity"),
    "truth": (lambda x, x0, s, t: x0 or x, "asks whether a quantity is true"),
    "equal": (lambda x, x0, s, t: x if x0 == x else x0, "the step uses == on a quantity"),
    "max": (lambda x, x0, s, t: x / x0.max(), r"the step asks for \.max of a quantity"),
    "clamp": (lambda x, x0, s, t: x0.clamp(-1, 1), r"the step asks for \.clamp of a quantity"),
    "shape": (lambda x, x0, s, t: x0 * x0.shape[0], r"the step asks for \.shape of a quantity"),
    "exp": (lambda x, x0, s, t: torch.exp(x0), "the step calls torch's exp on a quantity"),
    "torch.clamp": (lambda x, x0, s, t: torch.clamp(x0, -1, 1), "the step calls torch's clamp on a quantity"),
    "randn_like": (lambda x, x0, s, t: x + torch.randn_like(x0), "the step calls torch's randn_like on a quantity"),
    "stack": (lambda x, x0, s, t: torch.stack([x, x0]), "the step calls torch's stack on a quantity"),
    "numpy": (lambda x, x0, s, t: np.exp(x0), "the step calls NumPy's exp on a quantity"),
    "math": (lambda x, x0, s, t: x * math.exp(x0), r"the step uses float\(\) or a function of math on a quantity"),
    "add a tensor": (lambda x, x0, s, t: x0 + torch.randn(3, 1), r"the step adds a tensor float32 \(3, 1\)"),
    "add to a tensor": (lambda x, x0, s, t: torch.randn(3, 1) + x0, r"the step (adds|calls torch's add)"),
    "subtract from a tensor": (lambda x, x0, s, t: torch.randn(3) - x0, r"the step (adds|calls torch's (r?sub|add))"),
    "add a number": (lambda x, x0, s, t: x0 + 1, r"the step adds 1 \(int\) to a quantity"),
    "add to a number": (lambda x, x0, s, t: 1.5 + x0, r"the step adds 1.5 \(float\) to a quantity"),
    "subtract a number": (lambda x, x0, s, t: x0 - 1, r"the step subtracts 1 \(int\) from a quantity"),
    "subtract from a number": (lambda x, x0, s, t: 1 - x0, r"the step adds 1 \(int\) to a quantity"),
    "add an array": (lambda x, x0, s, t: x0 + np.ones(3), r"the step adds a NumPy array float64 \(3,\)"),
    "add to an array": (lambda x, x0, s, t: np.ones(3) + x0, r"the step adds a NumPy array float64 \(3,\)"),
    "product": (lambda x, x0, s, t: x0 * x0, "the step multiplies a quantity by another one"),
    "quotient": (lambda x, x0, s, t: x / x0, "the step divides a quantity by another one"),
    "reciprocal": (lambda x, x0, s, t: 1 / x0, "the step divides by a quantity"),
    "power": (lambda x, x0, s, t: x0**2, r"the step uses \*\* on a quantity"),
    "abs": (lambda x, x0, s, t: abs(x0), r"the step uses abs\(\) on a quantity"),
    "index": (lambda x, x0, s, t: x0[0], "the step uses an index on a quantity"),
    "loop": (lambda x, x0, s, t: sum(each for each in x0), "the step uses a loop on a quantity"),
    "times a tensor": (lambda x, x0, s, t: x0 * torch.ones(3), r"the step multiplies a quantity by a tensor"),
    "tensor times": (lambda x, x0, s, t: torch.ones(3) * x0, r"the step (multiplies|calls torch's mul)"),
    "times a string": (lambda x, x0, s, t: x0 * "2", r"the step multiplies a quantity by '2' \(str\)"),
    "times a complex": (lambda x, x0, s, t: x0 * 2j, "the step multiplies a quantity by 2j"),
    "returns a tensor": (lambda x, x0, s, t: torch.zeros(2, 3), "the step gives a tensor .* where a state or another"),
    "returns a number": (lambda x, x0, s, t: 0.0, r"the step gives 0.0 \(float\) where a state"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_linear_is_a_type_error_that_says_what_may_be_done(what):
    step, message = REFUSED[what]
    with pytest.raises(TypeError, match=message) as caught:
        fastdiff.trace(drawn(step), VP, [1.0, 0.5], "eps")
    text = str(caught.value)
    assert "it may only add and subtract its quantities" in text
    assert "scale them by numbers" in text
    assert "model.apply(" in text
    assert "LinearForm" not in text


def test_the_same_from_sample():
    with pytest.raises(TypeError, match="it may only add and subtract"):
        fastdiff.sample(lambda x, t: x, (1, 3), schedule=VP, prediction="eps", solver=drawn(REFUSED["if"][0]))


@pytest.mark.parametrize(
    "scaled",
    [
        lambda x: 2 * x, lambda x: x * 2.0, lambda x: np.float64(2) * x, lambda x: np.float32(2) * x, lambda x: x + x,
        lambda x: x / 0.5, lambda x: x * torch.tensor(2.0), lambda x: torch.tensor(2.0) * x, 
        lambda x: x / np.array(0.5),
        lambda x: np.array(2.0) * x, lambda x: sum([x, x]), lambda x: 3 * x - x, lambda x: -(-x - x), lambda x: +x * 2,
        lambda x: 0 - x * -2, lambda x: x * np.int64(2),
    ],
)  # fmt: skip
def test_numbers_of_every_kind_scale(scaled):
    assert scaled(LinearForm({0: 1.0, 1: -0.5})).terms == {0: 2.0, 1: -1.0}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda model, x: model.apply("clap", x, limit=1.0), ValueError, "unknown function of model.apply 'clap'; did"),
        (lambda model, x: model.apply("clip", x), TypeError, r"model.apply\('clip', ...\): missing a required.*limit"),
        (lambda model, x: model.apply("clip", x, x, limit=1.0), TypeError, r"'clip', ...\): too many positional"),
        (lambda model, x: model.apply("clip", 3.0, limit=1.0), TypeError, r"the step gives 3.0 \(float\) where"),
        (lambda model, x: None, TypeError, "the step of solver 'mine' returned nothing; it must return the state at t"),
    ],
)
def test_functions_and_results(call, error, message):
    with pytest.raises(error, match=message):
        fastdiff.trace(solver(lambda model, x, s, t, history: call(model, x)), VP, [1.0, 0.5], "eps")


def test_trace_takes_names():
    times = [1.0, 0.5, 0.1]
    named = fastdiff.trace("dpmpp-2m", "linear", times, "v", guidance=3.0, threshold=1.0)
    given = fastdiff.trace(fastdiff.solvers.get_solver("dpmpp-2m"), VP, times, get_prediction("v"),
                           guidance=fastdiff.CFG(3.0), threshold=fastdiff.Threshold(1.0))  # fmt: skip
    assert named == given
    with pytest.raises(ValueError, match="unknown prediction 'epsilon'; did you mean 'eps'"):
        fastdiff.trace("ddim", VP, times, "epsilon")
