"""The passes recognise the usual spellings, change nothing, and can be turned off."""

from __future__ import annotations

import copy
import math
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from compiler.spelled import GuidedUNet, LargeBlock, LatentUNet, TokenModel, random_model
from conftest import assert_no_worse
from torch import nn

import fastdiff
from fastdiff.compiler.passes import PASSES
from fastdiff.compiler.report import reports_of
from fastdiff.ops.conv2d_weights import packed
from fastdiff.runtime.native import core

MATCHES = {
    GuidedUNet: {"attention": 1, "group_norm_silu": 6, "conv2d": 10},
    LatentUNet: {"attention": 3, "group_norm_silu": 4, "linear": 11},
    TokenModel: {"attention": 2, "ada_layer_norm": 4, "linear": 12},
    LargeBlock: {"attention": 1, "group_norm_silu": 1, "conv2d": 2, "linear": 6},
}


def floor(oracle: torch.Tensor, reduction: int = 9 * 64) -> float:
    """Rounding of sums of `reduction` terms in float32."""
    return math.log2(reduction) * torch.finfo(torch.float32).eps * float(oracle.abs().max())


def check(model: nn.Module, inputs: tuple, fast) -> None:
    with torch.no_grad(), patch.object(torch.Tensor, "float", torch.Tensor.double):
        oracle = copy.deepcopy(model).double()(*(x.double() if x.is_floating_point() else x for x in inputs))
    with torch.no_grad():
        theirs = model._call_impl(*inputs)
        ours = fast(*inputs)
    assert ours.stride() == theirs.stride()
    assert_no_worse(ours, theirs, oracle, floor=floor(oracle))


@pytest.mark.parametrize("kind", MATCHES)
def test_spellings_are_recognised_at_any_size(kind):
    model = random_model(kind)
    inputs = model.inputs(2, 16, 16)
    fast = fastdiff.optimize(model)
    check(model, inputs, fast)
    (report,) = reports_of(list(model.parameters()))
    assert report.fallback is None
    found = {notes.name: notes.matches for notes in report.passes}
    assert {name: found[name] for name in MATCHES[kind]} == MATCHES[kind]
    assert not [notes.error for notes in report.passes if notes.error]

    for sizes in ((2, 24, 8), (3, 16, 16), (5, 8, 32), (2, 16, 16)):
        check(model, model.inputs(*sizes), fast)
    assert len(reports_of(list(model.parameters()))) == 2  # once more for all other sizes


@pytest.mark.skipif(not core.has_linear(), reason="no kernel for linear here: torch computes the layers one by one")
def test_layers_of_one_input_are_one_product():
    model = random_model(LargeBlock)
    inputs = model.inputs(2, 8, 8)
    fast = fastdiff.optimize(model)
    with torch.no_grad():
        text = str(fastdiff.explain(fast, inputs))
    assert "1 x linears" in text
    assert "geglu" not in text
    assert "chunk" not in text
    with fastdiff.use("reference"):
        check(model, inputs, fast)


class Convolutions(nn.Module):
    """Of sizes for which vectors are fastest with weights transformed ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1) for _ in range(4)))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("budget", ["1", "2.6", "9"])
def test_transformed_weights_stay_within_the_budget_of_the_model(isa, budget, monkeypatch):
    monkeypatch.setenv("FASTDIFF_WEIGHT_BUDGET", budget)
    model = random_model(Convolutions)
    fast = fastdiff.optimize(model)
    check(model, (torch.randn(1, 64, 32, 32),), fast)
    weights = [layer.weight for layer in model.layers]
    kept = sum(sum(packed(weight).nbytes().values()) for weight in weights)
    assert kept <= float(budget) * sum(weight.nbytes for weight in weights)
    if isa != "amx" and budget == "9":
        assert kept == 4 * sum(weight.nbytes for weight in weights)
    if isa != "amx" and budget == "2.6":
        assert kept == 2.5 * sum(weight.nbytes for weight in weights)  # half of them ahead


@pytest.mark.parametrize("name", PASSES)
def test_each_pass_can_be_turned_off(name):
    for kind in (LatentUNet,) if name != "ada_layer_norm" else (TokenModel,):
        model = random_model(kind)
        fast = fastdiff.optimize(model, disable=[name])
        check(model, model.inputs(1, 8, 8), fast)
        (report,) = reports_of(list(model.parameters()))
        assert {notes.name: notes.error for notes in report.passes}[name] == "turned off"


def test_a_pass_that_fails_is_undone_with_its_name(monkeypatch):
    def broken(graph, notes):
        next(iter(graph.nodes)).graph.output(None)
        raise RuntimeError("no good")

    monkeypatch.setitem(PASSES, "attention", broken)
    model = random_model(LatentUNet)
    fast = fastdiff.optimize(model)
    with pytest.warns(UserWarning, match="'attention' failed and was undone: RuntimeError: no good"):
        check(model, model.inputs(1, 8, 8), fast)
    assert "no good" in str(fastdiff.explain(fast))


class InPlace(nn.Module):
    """Mutations that nobody else sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.SiLU(inplace=True)

    def forward(self, x):
        h = self.relu(self.conv(x))
        h += 1
        return h.mul_(2)


class SeenInPlace(InPlace):
    """A mutation that shows through a view."""

    def forward(self, x):
        h = self.conv(x)
        view = h[:, :1]
        h += 1
        return view + h


@pytest.mark.parametrize(("kind", "fallback"), [(InPlace, None), (SeenInPlace, "in place")])
def test_mutations(kind, fallback):
    model = random_model(kind)
    fast = fastdiff.optimize(model)
    check(model, (torch.randn(1, 3, 8, 8),), fast)
    (report,) = reports_of(list(model.parameters()))
    assert (report.fallback is None) if fallback is None else (fallback in report.fallback)


class Lookalikes(nn.Module):
    """What resembles attention and the norms, and is not."""

    def forward(self, x, y):
        maps = torch.softmax(x @ y.transpose(-2, -1), dim=-2)  # over the queries
        shown = torch.softmax(x @ y.transpose(-2, -1), dim=-1)
        normed = F.layer_norm(x, x.shape[-1:]) * (2 + y) + x
        return maps @ y, shown, shown @ y, normed, F.softmax(x, -1)


def test_lookalikes_keep_their_meaning():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.inner = Lookalikes()

        def forward(self, x, y):
            return self.inner(self.linear(x), y)

    model = random_model(Model)
    x, y = torch.randn(2, 2, 6, 8)
    fast = fastdiff.optimize(model)
    with torch.no_grad():
        for ours, theirs in zip(fast(x, y), model._call_impl(x, y), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_what_does_not_change_between_steps_is_computed_once():
    model = random_model(LatentUNet)
    x, t, context = model.inputs(2, 8, 8)
    fast = fastdiff.optimize(model)
    calls = []
    for step in range(4):
        check(model, (x + step, t + step, context), fast)
        kept = reports_of(list(model.parameters()))[0].graph.module.kept
        calls.append(kept.hits)
    assert calls == [0, 0, 1, 2]
    check(model, (x, t, context.clone()), fast)  # the same values
    context[0, 0, 0] += 1
    check(model, (x, t, context), fast)
    check(model, (x, t, context), fast)
    with torch.no_grad():
        model.attention2.to_k.weight.data += 0.1
    check(model, (x, t, context), fast)
    for _ in range(4):  # nobody compares what always differs
        check(model, (x, t, torch.randn_like(context)), fast)
    assert kept._misses == 3
