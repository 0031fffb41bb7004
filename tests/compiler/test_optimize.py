"""optimize() keeps everything of a model but its speed; verify() finds what differs."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from compiler.spelled import LargeBlock, LatentUNet, TokenModel, close, random_model, reference
from torch import nn

import fastdiff
from fastdiff.compiler.report import reports_of


@pytest.fixture
def model():
    return random_model(TokenModel)


def test_it_is_the_same_object_and_restore_undoes_it(model):
    state, inputs = model.state_dict(), model.inputs(2, 8, 8)
    assert fastdiff.optimize(model) is model
    assert model.state_dict().keys() == state.keys()
    with torch.no_grad():
        close(model(*inputs), reference(model, inputs))
    torch.save(model.state_dict(), io.BytesIO())
    copied = copy.deepcopy(model)  # not optimised: it has parameters of its own
    assert copied._compiled_call_impl is None
    assert fastdiff.restore(model) is model
    assert model._compiled_call_impl is None


def test_changed_weights_are_seen(model):
    inputs = model.inputs(2, 8, 8)
    fastdiff.optimize(model)
    with torch.no_grad():
        before = model(*inputs)
        model.blocks[0].qkv.weight.mul_(1.5)
        close(model(*inputs), reference(model, inputs))
        model.blocks[0].proj.weight.data += 0.1  # as a LoRA is merged: the version stays
        model.blocks[1].mlp[0].weight.data.mul_(1.1)
        model.patches.weight.data += 0.1
        close(model(*inputs), reference(model, inputs))
        model.out.weight = nn.Parameter(torch.randn_like(model.out.weight))
        close(model(*inputs), reference(model, inputs))
        model.load_state_dict(random_model(TokenModel, seed=1).state_dict())
        close(model(*inputs), reference(model, inputs))
    assert not torch.allclose(before, model(*inputs))


def test_changed_weights_are_seen_by_the_kernels():
    """In sizes that the kernels take: 3x3 and 1x1 convolutions, GEGLU, q, k and v in one."""
    model = random_model(LargeBlock)
    inputs = (torch.randn(2, 64, 8, 8),)
    fastdiff.optimize(model)
    with torch.no_grad():
        before = model(*inputs)
        for change in (
            lambda weight: weight.mul_(1.5),
            lambda weight: weight.data.add_(0.02),
            lambda weight: weight.data.copy_(torch.randn(weight.shape) / 20),
        ):
            for parameter in model.parameters():
                change(parameter)
            found = model(*inputs)
            close(found, reference(model, inputs))
            assert not torch.allclose(found, before)


def test_models_of_this_package():
    torch.manual_seed(0)
    model = fastdiff.load("emoji-unet-32")
    x, t = torch.randn(2, *model.info.shape), torch.tensor([10.0, 700.0])
    condition = model.info.condition("animals", 2)
    with torch.no_grad():
        expected = model(x, t, **condition)
        fastdiff.optimize(model)
        found = model(x, t, **condition)
        sampled = fastdiff.sample(model, (2, *model.info.shape), steps=2, seed=1, cond=condition)
    close(found, expected)
    (report, *_) = reports_of(list(model.parameters()))
    assert report.fallback is None
    assert sum(notes.matches for notes in report.passes if notes.name in ("conv2d", "linear")) > 20
    verified = fastdiff.verify(model, model, ((x, t), condition))  # whose graph holds operators, which take no float64
    assert verified.ok
    assert verified.against == "float64"
    fastdiff.restore(model)
    again = fastdiff.sample(model, (2, *model.info.shape), steps=2, seed=1, cond=condition)
    torch.testing.assert_close(sampled, again, rtol=1e-4, atol=1e-4)


def test_another_dtype(model):
    inputs = model.inputs(2, 8, 8)
    fastdiff.optimize(model)
    with torch.no_grad():
        model(*inputs)
        model.to(torch.float64)
        wide = tuple(x.double() for x in inputs)
        torch.testing.assert_close(model(*wide), reference(model, wide))


def test_gradients_are_the_originals(model):
    inputs = model.inputs(2, 8, 8)
    expected = torch.autograd.grad(model(*inputs).square().sum(), list(model.parameters()))
    fastdiff.optimize(model)
    found = torch.autograd.grad(model(*inputs).square().sum(), list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        close(a, b)
    (report,) = reports_of(list(model.parameters()))
    assert "gradient" in report.fallback


def test_as_a_backend_of_torch_compile(model):
    inputs = model.inputs(2, 8, 8)
    compiled = torch.compile(model, backend="fastdiff")
    with torch.no_grad():
        close(compiled(*inputs), model(*inputs))
    assert "attention" in str(fastdiff.explain(compiled))
    assert fastdiff.verify(model, compiled, inputs).ok


class Branches(nn.Module):
    """A branch on the data, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = random_model(TokenModel)

    def forward(self, x, t):
        y = self.inner(x, t)
        return y if y.sum() > 1e9 else 2 * y


def test_a_graph_break_leaves_the_rest_fast():
    model = Branches().eval()
    inputs = model.inner.inputs(2, 8, 8)
    fastdiff.optimize(model)
    with torch.no_grad(), pytest.warns(UserWarning, match="captured in 2 parts, what is between them runs as it was"):
        found = model(*inputs)
    close(found, reference(model, inputs))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        close(model(*inputs), found)
    reports = reports_of(list(model.parameters()))
    assert any(notes.matches for report in reports for notes in report.passes if notes.name == "attention")
    assert "not the whole model: " in str(fastdiff.explain(model))


@torch.compiler.disable
def opaque(x):
    return x * 2


class Unknown(nn.Module):
    """Operations that no pass knows, between those that they know, and one that cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = random_model(TokenModel)

    def forward(self, x, t, *, hide=False):
        y = self.inner(torch.fft.ifft2(torch.fft.fft2(x)).real, t)
        y = F.max_pool1d(torch.cumsum(y, 1), 2).sort(-1).values
        return opaque(y) if hide else y


@pytest.mark.parametrize("hide", [False, True])
def test_unknown_operations_run_as_they_are(hide):
    model = Unknown().eval()
    inputs = model.inner.inputs(2, 8, 8)
    fastdiff.optimize(model)
    with torch.no_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        close(model(*inputs, hide=hide), model._call_impl(*inputs, hide=hide))
    assert any("fastdiff: the model was captured" in str(each.message) for each in said) == hide
    (report, *_) = reports_of(list(model.parameters()))
    assert sum(notes.matches for notes in report.passes if notes.name == "attention") == 2


def test_what_is_no_model_is_refused(model):
    with pytest.raises(TypeError, match=r"torch.nn.Module or a pipeline of diffusers, got int"):
        fastdiff.optimize(3)
    with pytest.raises(ValueError, match="did you mean 'attention'"):
        fastdiff.optimize(model, disable=["atention"])
    with pytest.raises(ValueError, match=r"fastdiff.optimize or torch.compile"):
        fastdiff.verify(model, model, model.inputs(1, 8, 8))


def test_verify_reports_errors_and_the_first_wrong_node(monkeypatch):
    model = random_model(LatentUNet)
    inputs = model.inputs(2, 8, 8)
    fast = fastdiff.optimize(model)
    found = fastdiff.verify(model, fast, inputs)
    assert found.ok
    assert found.against == "float64"
    assert found.nodes > 20
    assert found.first is None
    fastdiff.restore(model)

    from fastdiff.compiler import fused

    monkeypatch.setattr(fused.ops, "attention", lambda q, k, v, **options: 1.01 * q)
    fast = fastdiff.optimize(random_model(LatentUNet))
    found = fastdiff.verify(fast, fast, inputs)
    assert not found.ok
    assert found.first.name.startswith(("out", "h", "bmm"))
    assert "DIFFERENT" in str(found)

    fast = fastdiff.optimize(random_model(LatentUNet), verify=True)
    with torch.no_grad(), pytest.warns(UserWarning, match="the original runs from here on"):
        first = fast(*inputs)
    with torch.no_grad():
        close(first, reference(fast, inputs))
        close(fast(*inputs), first)


def test_explain(model, tmp_path):
    fast = fastdiff.optimize(model)
    assert "nothing was captured yet" in str(fastdiff.explain(fast))
    text = str(fastdiff.explain(fast, model.inputs(2, 8, 8), html=tmp_path / "page.html"))
    assert "ada_layer_norm" in text
    assert "linear" in text
    assert "ms" in text
    assert "captured with 2x4x8x8" in (tmp_path / "page.html").read_text()
