"""`optimize(model, precision=...)`: which layers change, what `verify` and `explain` say, and what is refused."""

import warnings
import weakref

import pytest
import torch
from torch import fx, nn

import fastdiff
from fastdiff.compiler import low_errors, precision
from fastdiff.compiler.fused import linear
from fastdiff.compiler.passes import PASSES
from fastdiff.compiler.passes import precision as passes_precision
from fastdiff.compiler.report import Notes, reports_of
from fastdiff.ops import linear_low
from fastdiff.runtime import choice
from fastdiff.runtime.native import core


class Block(nn.Module):
    """A gated feed-forward net of tokens, with a modulation of its own."""

    def __init__(self, width=64):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.gate = nn.Linear(width, width)

    def forward(self, x, c):
        value, gate = self.up(self.norm(x)).chunk(2, -1)
        return x + self.gate(c)[:, None] * self.down(value * nn.functional.gelu(gate))


class Tokens(nn.Module):
    """As DiT is: into the width, some blocks, and out again."""

    def __init__(self, width=64, depth=2, channels=8):
        super().__init__()
        torch.manual_seed(0)
        self.into, self.time = nn.Linear(channels, width), nn.Linear(1, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.out = nn.Linear(width, channels)

    def forward(self, x, t):
        c = nn.functional.silu(self.time(t[:, None]))
        h = self.into(x)
        for block in self.blocks:
            h = block(h, c)
        return self.out(h)


INPUTS = torch.randn(2, 24, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.2, 0.7])
LAYERS = {f"blocks.{k}.{name}" for k in range(2) for name in ("up", "down", "gate")}


def lowered(model):
    """Names of the layers in lower precision."""
    (report,) = reports_of([*model.parameters()])
    return {layer.name for layer in precision.layers(report.graph.module)}


def run(model, inputs=INPUTS):
    with torch.no_grad():
        return model(*inputs)


@pytest.mark.parametrize("word", linear_low.PRECISIONS)
def test_all_layers_but_the_first_and_the_last_change(word):
    model = Tokens()
    expected = run(model)
    fastdiff.optimize(model, precision=word)
    found = run(model)
    assert found.dtype is torch.float32
    assert lowered(model) == LAYERS
    error = float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    assert 1e-5 < error < (0.01 if word == "bf16" else 0.04)
    text = str(fastdiff.explain(model))
    assert f"{word} by" in text
    assert "left 2: one of the first layers" in text
    assert "left 1: one of the last layers" in text
    weights = [dict(model.named_modules())[name].weight for name in LAYERS]
    low = sum(linear_low.nbytes(tuple(weight.shape), word) for weight in weights)
    assert f"weights of {low / 1e6:.2f} MB, made of {sum(w.nbytes for w in weights) / 1e6:.2f} MB" in text


def test_float32_is_the_default_and_changes_nothing():
    for options in ({}, {"precision": "float32"}):
        model = fastdiff.optimize(Tokens(), **options)
        run(model)
        assert not lowered(model)


@pytest.mark.parametrize("word", linear_low.PRECISIONS)
def test_verify_ranks_the_layers_and_holds_the_result_to_autocasts_error(word):
    model = fastdiff.optimize(Tokens(), precision=word)
    result = fastdiff.verify(model, model, INPUTS)
    assert result, str(result)
    assert {layer.name for layer in result.layers} == LAYERS
    errors = [layer.rms for layer in result.layers]
    assert errors == sorted(errors, reverse=True)
    assert all(1e-5 < error < (0.01 if word == "bf16" else 0.05) for error in errors)
    text = str(result)
    assert f"6 layers in {word}" in text
    assert result.layers[0].name in text


def test_verify_finds_a_layer_whose_error_is_too_large(monkeypatch):
    right = linear_low.low_linear
    monkeypatch.setattr(precision, "low_linear", lambda a, word: 1.5 * right(a, word))
    model = fastdiff.optimize(Tokens(), precision="bf16")
    result = fastdiff.verify(model, model, INPUTS)
    assert not result
    assert result.layers[0].rms > 0.3


def test_verify_at_the_first_call_keeps_what_is_good_enough_and_leaves_the_rest(monkeypatch):
    model = Tokens()
    expected = run(model)
    fastdiff.optimize(model, precision="bf16", verify=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not torch.equal(run(model), expected)
    right = linear_low.low_linear
    monkeypatch.setattr(precision, "low_linear", lambda a, word: 1.5 * right(a, word))
    model = fastdiff.optimize(Tokens(), precision="bf16", verify=True)
    with pytest.warns(UserWarning, match="the original runs from here on"):
        assert torch.equal(run(model), expected)


def test_exceptions_stay_in_float32_and_are_listed():
    model = fastdiff.optimize(Tokens(), precision="int8", keep_float32=["blocks.1", "blocks.*.down"])
    run(model)
    assert lowered(model) == {"blocks.0.up", "blocks.0.gate"}
    assert "left 4: keep_float32 names the layer" in str(fastdiff.explain(model))


def with_outliers():
    """One layer has an input whose weights are 200 times the others."""
    model = Tokens(width=512, depth=1)
    with torch.no_grad():
        model.blocks[0].down.weight[:, 7] *= 200
    return model


@pytest.mark.parametrize("instructions", [True, False])
def test_a_weight_that_int8_rounds_too_much_is_in_bfloat16_or_left(instructions, monkeypatch):
    monkeypatch.setattr(
        linear_low, "implementation", lambda word: "instructions" if instructions or word == "int8" else "plain"
    )
    monkeypatch.setattr(passes_precision, "implementation", linear_low.implementation)
    model = fastdiff.optimize(with_outliers(), precision="int8")
    run(model)
    (report,) = reports_of([*model.parameters()])
    words = {layer.name: layer.precision for layer in precision.layers(report.graph.module)}
    coarse = {"blocks.0.down": "bf16"} if instructions else {}
    assert words == {"blocks.0.up": "int8", "blocks.0.gate": "int8"} | coarse
    text = str(fastdiff.explain(model))
    assert ("in bf16, as int8 is too coarse for the weight: blocks.0.down" in text) == instructions
    assert ("left 1: int8 is too coarse for the weight" in text) != instructions


def test_a_weight_that_is_not_on_the_cpu_is_not_looked_at():
    layer, graph = nn.Linear(64, 64, device="meta"), fx.Graph()
    node = graph.placeholder("weight")
    precision.mark(graph, [layer.weight], weakref.ref(layer), precision.Precision("int8"))
    assert precision.of(node) == "int8"
    assert not precision.too_coarse(node)


def test_what_int8_rounds_too_much():
    normal = torch.randn(64, 1152, generator=torch.Generator().manual_seed(0))
    assert not linear_low.coarse(normal)
    assert not linear_low.coarse(torch.zeros(64, 64))
    normal[:32] = 0
    assert not linear_low.coarse(normal)
    normal[40:, 5] = 1000
    assert linear_low.coarse(normal)


def test_restore_undoes_it():
    model = Tokens()
    expected = run(model)
    fastdiff.optimize(model, precision="bf16")
    assert not torch.equal(run(model), expected)
    assert torch.equal(run(fastdiff.restore(model)), expected)
    fastdiff.optimize(model)
    torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("word", linear_low.PRECISIONS)
def test_a_changed_weight_is_followed(word):
    model = fastdiff.optimize(Tokens(), precision=word)
    run(model)
    with torch.no_grad():
        model.blocks[1].down.weight.zero_()
        model.blocks[1].up.weight.data[3] += 1  # a row, of which PyTorch knows nothing
    expected = run(fastdiff.restore(model))
    fastdiff.optimize(model, precision=word)
    fresh = run(model)
    with torch.no_grad():
        model.blocks[0].up.weight.mul_(0.5)
    assert not torch.equal(run(model), fresh)
    assert low_errors.precision([reports_of([*model.parameters()])[0].graph]) == word
    assert float((fresh - expected).square().mean().sqrt() / expected.square().mean().sqrt()) < 0.05


def test_other_sizes():
    model = fastdiff.optimize(Tokens(), precision="bf16")
    for batch, tokens in ((2, 24), (3, 7), (5, 40)):
        x, t = torch.randn(batch, tokens, 8), torch.rand(batch)
        exact = model._call_impl(x, t).detach()
        assert float((run(model, (x, t)) - exact).square().mean().sqrt() / exact.std()) < 0.01


def test_a_gradient_comes_from_the_original():
    model = fastdiff.optimize(Tokens(), precision="bf16")
    with pytest.warns(UserWarning, match="a gradient is wanted"):
        model(*INPUTS).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_bad_words_and_models_are_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown precision 'bf61'; did you mean 'bf16'"):
        fastdiff.optimize(Tokens(), precision="bf61")
    with pytest.raises(TypeError, match=r"precision must be a name, got torch.bfloat16"):
        fastdiff.optimize(Tokens(), precision=torch.bfloat16)
    with pytest.raises(ValueError, match=r"is for float32 models, and this one has torch.bfloat16 weights"):
        fastdiff.optimize(Tokens().bfloat16(), precision="bf16")
    with pytest.raises(ValueError, match=r"unknown part of the model in keep_float32 'block.1'; did you mean 'blocks"):
        fastdiff.optimize(Tokens(), precision="bf16", keep_float32=["block.1"])
    with pytest.raises(TypeError, match="keep_float32 must be a list of names"):
        fastdiff.optimize(Tokens(), precision="bf16", keep_float32="blocks.1")
    with pytest.raises(ValueError, match="precision is 'float32'"):
        fastdiff.optimize(Tokens(), keep_float32=["blocks.1"])
    model = Tokens().to("meta")
    with pytest.raises(ValueError, match=r"is for CPUs, and the model is on meta; .* model.to\(torch.float16\)"):
        fastdiff.optimize(model, precision="int8")
    assert model._compiled_call_impl is None  # untouched


@pytest.mark.parametrize(("options", "why"), [({"device": "meta"}, "on meta"), ({"dtype": torch.float16}, "float32")])
def test_a_model_that_is_moved_or_converted_later_stays_as_it_is(options, why):
    """Its graph is captured again, and holds weights of which the precision was asked before."""
    graph, notes = fx.Graph(), Notes("precision")
    x, weight = graph.placeholder("x"), graph.placeholder("l_self_parameters_weight_")
    graph.output(graph.call_function(linear, (x, weight)))
    for node in (x, weight):
        node.meta["example_value"] = torch.empty(64, 64, **options)
    weight.meta |= {"precision": "bf16", "layer": "up", "keep_float32": False}
    PASSES["precision"](graph, notes)
    assert not notes.matches
    ((reason, count),) = notes.misses.items()
    assert why in reason
    assert count == 1


def test_exactness_that_was_asked_for_rules_it_out(monkeypatch):
    monkeypatch.setattr(choice, "_exact", True)
    with pytest.raises(ValueError, match="FASTDIFF_EXACT=1 rules out"):
        fastdiff.optimize(Tokens(), precision="bf16")


@pytest.mark.parametrize("word", linear_low.PRECISIONS)
def test_without_instructions_it_is_right_and_says_what_it_costs(word):
    before = core.isa()
    core.select_isa("baseline")
    try:
        with pytest.warns(
            UserWarning, match=r"no instructions in baseline .* longer than float32, which is the next best"
        ):
            model = fastdiff.optimize(Tokens(), precision=word)
        assert fastdiff.verify(model, model, INPUTS)
        assert "float32 products of the rounded numbers" in str(fastdiff.explain(model))
    finally:
        core.select_isa(before)
