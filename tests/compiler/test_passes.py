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
    assert "4 x linear" in text  # one of them of queries, keys and values, which are its columns
    assert "3 x columns" in text
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


@pytest.mark.parametrize(("kind", "fallback"), [(InPlace, None), (SeenInPlace, None)])
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


class WithoutAWord(nn.Module):
    """Calls of the functions that passes look for, with arguments that the vocabulary has no word for."""

    def __init__(self):
        super().__init__()
        self.same = nn.Conv2d(8, 8, 3, padding="same")
        self.unbatched = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = F.conv2d(self.same(x), self.same.weight, padding="valid")
        x = torch.stack([self.unbatched(each) for each in x])
        x = F.dropout(F.interpolate(x, scale_factor=3, mode="nearest"), 0.0)
        maps = torch.softmax(x.flatten(2), -1, dtype=torch.float64).float()
        return x + F.scaled_dot_product_attention(maps, maps, maps, dropout_p=0.0).view_as(x) + F.softmax(x, dim=1)


def test_calls_that_the_vocabulary_has_no_word_for():
    model = random_model(WithoutAWord)
    fast = fastdiff.optimize(model)
    check(model, (torch.randn(2, 8, 12, 12),), fast)
    (report,) = reports_of(list(model.parameters()))
    assert {notes.name: notes.error for notes in report.passes if notes.error} == {}


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


class ResidualNorms(nn.Module):
    """h = residual + gate * y before a norm, in the spellings that it has; the last sum is used before its norm."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.norm = nn.LayerNorm(24, elementwise_affine=spelling == "affine")
        self.last = nn.LayerNorm(24)

    def forward(self, x: torch.Tensor, y: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        gate, scale, shift = table.chunk(3, dim=-1)
        y = y.sin()
        h = {
            "gated": lambda: x + gate * y,
            "gate last": lambda: y * gate + x,
            "addcmul": lambda: torch.addcmul(x, gate, y),
            "affine": lambda: x + y,
        }[self.spelling]()
        z = self.norm(h)
        z = z if self.spelling == "affine" else z * (1 + scale) + shift
        late = h * 2 + z
        return self.last(late) + late.cos()


@pytest.mark.parametrize("spelling", ["gated", "gate last", "addcmul", "affine"])
def test_a_residual_and_the_norm_of_it_are_one(spelling):
    model = ResidualNorms(spelling).eval()
    fast = fastdiff.optimize(model)
    for batch, rows in ((2, 5), (3, 7), (1, 4)):
        check(model, (torch.randn(batch, rows, 24), torch.randn(batch, rows, 24), torch.randn(batch, 1, 72)), fast)
    for report in reports_of(list(model.parameters())):
        assert {notes.name: notes.matches for notes in report.passes}["residual_ada_layer_norm"] == 2


@pytest.mark.parametrize("name", ["dit", "pixart", "sd3", "ours"])
def test_blocks_of_transformers_across_their_boundary(name, monkeypatch):
    """Each norm that follows a residual; on AMX none, as the kernel of the linear layer before adds the residual."""
    model, inputs, norms = transformer(name)
    before = core.isa()
    core.select_isa(next(isa for isa in core.supported_isas() if isa != "amx"))
    try:
        with torch.no_grad():
            expected = model._call_impl(*inputs)[0]
            found = fastdiff.optimize(model)(*inputs)[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    finally:
        core.select_isa(before)
    (report,) = reports_of(list(model.parameters()))
    assert {notes.name: notes.matches for notes in report.passes}["residual_ada_layer_norm"] == norms


def transformer(name: str) -> tuple[nn.Module, tuple, int]:
    """A small one with three blocks, its inputs, and how many of its norms follow a residual."""
    torch.manual_seed(0)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 500])
    if name == "ours":
        from fastdiff.models.dit import DiT, DiTConfig

        model = DiT(DiTConfig(input_size=8, hidden_size=32, depth=3, num_heads=2, num_classes=10))
        inputs, norms = (x, t, torch.tensor([1, 2])), 2  # from block to block; within one the model calls the operator
    else:
        diffusers = pytest.importorskip("diffusers", reason="the networks are diffusers'")
        common = dict(sample_size=8, patch_size=2, in_channels=4, num_layers=3)
        if name == "sd3":
            model = diffusers.SD3Transformer2DModel(
                attention_head_dim=8, num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32,
                pooled_projection_dim=24, out_channels=4, pos_embed_max_size=48, **common,
            )  # fmt: skip
            inputs, norms = (x, torch.randn(2, 9, 32), torch.randn(2, 24), t.float()), 10  # two streams
        elif name == "pixart":
            model = diffusers.PixArtTransformer2DModel(
                num_attention_heads=2, attention_head_dim=16, out_channels=8, cross_attention_dim=32,
                caption_channels=24, norm_type="ada_norm_single", **common,
            )  # fmt: skip
            added = {"resolution": None, "aspect_ratio": None}
            inputs, norms = (x, torch.randn(2, 7, 24), t, added), 6
        else:
            model = diffusers.DiTTransformer2DModel(
                num_attention_heads=2, attention_head_dim=16, out_channels=4, num_embeds_ada_norm=10, **common
            )
            inputs, norms = (x, t, torch.tensor([1, 2])), 6
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
    return model.eval(), inputs, norms
