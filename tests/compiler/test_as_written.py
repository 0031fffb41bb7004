"""Where the original runs in an optimized model's place, that is said: at the call, and by verify()."""

from __future__ import annotations

import warnings

import pytest
import torch
from compiler.spelled import TokenModel, close, random_model, reference
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import fastdiff
from fastdiff.compiler import capture
from fastdiff.compiler.errors import Unsupported
from fastdiff.compiler.report import reports_of
from fastdiff.runtime import eager


@pytest.fixture
def model():
    return random_model(TokenModel)


def said(call):
    """What fastdiff warned of in a call."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in found if "fastdiff" in str(each.message)]


@pytest.mark.parametrize("frozen", [False, True])
def test_a_call_that_wants_a_gradient_says_once_that_it_is_not_faster(model, frozen):
    x, *rest = model.inputs(2, 8, 8)
    model.requires_grad_(not frozen)
    x.requires_grad_(frozen)
    fastdiff.optimize(model)
    (message,) = said(lambda: model(x, *rest))
    assert f"{type(model).__name__} runs as it was written, and not faster: a gradient is wanted" in message
    assert "torch.no_grad()" in message
    assert said(lambda: model(x, *rest)) == []
    assert said(lambda: model(*model.inputs(1, 12, 12))) == []
    assert said(lambda: torch.no_grad()(model)(x, *rest)) == []
    assert any(report.fallback is None for report in reports_of(list(model.parameters())))


def test_a_call_without_gradients_says_nothing(model):
    fastdiff.optimize(model)
    with torch.inference_mode():
        assert said(lambda: model(*model.inputs(2, 8, 8))) == []
    model.requires_grad_(False)
    assert said(lambda: model(*model.inputs(2, 8, 8))) == []


def test_verify_runs_without_gradients_whatever_ran_before(model):
    inputs = model.inputs(2, 8, 8)
    fastdiff.optimize(model)
    said(lambda: model(*inputs))
    found = fastdiff.verify(model, model, inputs)
    assert found.ok
    assert found.notes == []
    assert str(found).startswith("same: the fast model")


def test_verify_does_not_say_same_of_the_original(model, monkeypatch):
    inputs = model.inputs(2, 8, 8)
    fastdiff.optimize(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = fastdiff.verify(model, model, inputs)
    with eager.as_written("somebody looks at it"):
        written = fastdiff.verify(model, model, inputs)

    def refuses(graph, notes):
        raise Unsupported("a test does not want it")

    monkeypatch.setattr(capture.normalize, "apply", lambda graph: refuses(graph, None))
    unsupported = fastdiff.verify(model, model, model.inputs(1, 12, 12))
    for found, why in (
        (autocast, "torch.autocast"),
        (written, "somebody looks"),
        (unsupported, "a test does not want"),
    ):
        assert not found
        assert not found.ok
        assert "same" not in str(found)
        assert str(found).startswith("not verified: the original ran: ")
        assert why in found.unproven


def test_the_first_call_is_verified_when_the_fast_model_runs(model, monkeypatch):
    inputs = model.inputs(2, 8, 8)
    fast = fastdiff.optimize(model, verify=True)
    said(lambda: fast(*inputs))  # with gradients: the original
    monkeypatch.setattr(capture.FastGraph, "__call__", lambda graph, *values: wrong(graph, values))

    def wrong(graph, values):
        capture.FastGraph.observer(graph, values)
        return graph.original(*(v + 1 if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in values))

    with torch.no_grad(), pytest.warns(UserWarning, match="the original runs from here on"):
        close(fast(*inputs), reference(fast, inputs))


def traced(model, inputs):
    return torch.jit.trace(model, inputs, check_trace=False)


def symbolic(model, inputs):
    return make_fx(model)(*inputs)


def traced_as_a_part(model, inputs):
    return torch.fx.symbolic_trace(nn.Sequential(model))


@pytest.mark.parametrize("record", [traced, symbolic, traced_as_a_part])
@pytest.mark.parametrize("called", [False, True])
def test_what_records_a_model_gets_the_original(record, called):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.SiLU()).eval()
    x = torch.randn(2, 32, 8, 8)
    fastdiff.optimize(model)
    with torch.no_grad():
        if called:
            model(x)
        found = record(model, (x,))
        torch.testing.assert_close(found(x + 1), model._call_impl(x + 1))
        close(model(x), model._call_impl(x))
