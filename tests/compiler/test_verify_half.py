"""`verify` in float16 and bfloat16: the error against a wider type is no larger than the original's."""

import warnings

import pytest
import torch
from torch import nn

import fastdiff
from fastdiff.compiler import wider
from fastdiff.compiler.capture import FastGraph
from fastdiff.compiler.differences import difference, node_difference
from fastdiff.models.dit import DiT, DiTConfig
from fastdiff.models.unet import UNet, UNetConfig

HALVES = [torch.float16, torch.bfloat16]


def unet():
    config = UNetConfig((32, 64), 1, (2,), head_channels=32, groups=8, embedding_channels=64)
    return UNet(config), (torch.randn(2, 3, 16, 16), torch.tensor([10.0, 600.0]))


def dit():
    config = DiTConfig(input_size=8, hidden_size=64, depth=2, num_heads=2, num_classes=4)
    return DiT(config), (torch.randn(2, 4, 8, 8), torch.tensor([10.0, 600.0]), torch.tensor([1, 2]))


def halved(make, dtype):
    """With weights that leave nothing at zero, as some models begin."""
    torch.manual_seed(0)
    model, inputs = make()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    inputs = tuple(x.to(dtype) if x.is_floating_point() and x.ndim > 1 else x for x in inputs)
    return model.to(dtype).eval().requires_grad_(False), inputs


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("make", [unet, dit])
def test_optimized_models_err_no_more_than_the_original(make, dtype):
    model, inputs = halved(make, dtype)
    found = fastdiff.verify(model, fastdiff.optimize(model), inputs)
    (output,) = found.outputs
    assert found, str(found)
    assert found.against == "float64"
    assert found.nodes > 20
    assert found.first is None
    assert 0 < output.rms <= output.rms_bound < 20 * torch.finfo(dtype).eps  # bounds that say something
    assert output.maximum <= output.bound < 100 * torch.finfo(dtype).eps

    # what is allowed is the original's own error, computed here once more
    exact = model.double()._call_impl(*(x.double() if x.is_floating_point() else x for x in inputs))
    theirs = model.to(dtype)._call_impl(*inputs)
    unit = exact.square().mean().sqrt()
    rms = float((theirs.double() - exact).square().mean().sqrt() / unit)
    assert output.rms_bound == pytest.approx(1.25 * rms + torch.finfo(dtype).eps / 2, rel=0.05)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_fast_model_that_errs_more_is_found(dtype, monkeypatch):
    model, inputs = halved(unet, dtype)
    fastdiff.optimize(model)
    run = FastGraph.__call__
    for factor, same in ((1 + 8 * torch.finfo(dtype).eps, False), (1.0, True)):

        def worse(self, *values, factor=factor):
            return tuple(x * factor for x in run(self, *values))

        monkeypatch.setattr(FastGraph, "__call__", worse)
        found = fastdiff.verify(model, model, inputs)
        assert found.ok is same, str(found)
        assert (" >  " in str(found)) is not same


@pytest.mark.parametrize("dtype", HALVES)
def test_models_in_parts_are_compared_with_themselves_in_a_wider_type(dtype):
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x):
            h = self.first(x)
            torch._dynamo.graph_break()
            return self.second(h.sin())

    torch.manual_seed(0)
    model, x = Parts().to(dtype).eval(), torch.randn(4, 64).to(dtype)
    before = [p.clone() for p in model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the parts
        found = fastdiff.verify(model, fastdiff.optimize(model), (x,))
    assert found, str(found)
    assert found.against == "float64"
    assert found.outputs[0].rms_bound < 4 * torch.finfo(dtype).eps
    assert all(torch.equal(a, b) and a.dtype is b.dtype for a, b in zip(before, model.parameters()))


def test_without_memory_for_float64_it_is_float32(monkeypatch):
    model, inputs = halved(dit, torch.bfloat16)
    parameters = sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(wider, "_free", lambda device: 2 * 6 * parameters)
    found = fastdiff.verify(model, fastdiff.optimize(model), inputs)
    assert found, str(found)
    assert found.against == "float32"
    monkeypatch.setattr(wider, "_free", lambda device: parameters)
    found = fastdiff.verify(model, model, inputs)
    assert not found.ok
    assert str(found) == "not verified: there is too little memory for the original in float32"


def test_bounds():
    exact = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theirs = exact.bfloat16()
    eps = torch.finfo(torch.bfloat16).eps
    same = difference("output", theirs, theirs, exact)
    assert same.within
    assert same.rms_bound == pytest.approx(1.25 * same.rms + eps / 2)
    twice = (exact + 3 * (theirs.double() - exact) + eps).bfloat16()
    assert not difference("output", twice, theirs, exact).within
    assert not difference("output", theirs * torch.nan, theirs, exact).within
    node = node_difference("node", twice, theirs, exact)
    assert (node.maximum, node.rms_bound) == (difference("output", twice, theirs, exact).maximum, float("inf"))
    single = difference("output", exact.float(), exact.float(), exact)
    assert (single.bound, single.rms_bound) == (pytest.approx(1e-4), float("inf"))


def test_no_tf32_unless_it_is_said(monkeypatch):
    """Settings of a GPU, which can be read and set without one."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [each.allow_tf32 for each in backends]
    try:
        backends[0].allow_tf32, backends[1].allow_tf32 = False, True  # PyTorch's own defaults
        with wider.without_tf32(torch.device("cuda")) as note:
            assert [each.allow_tf32 for each in backends] == [False, False]
        assert "without TF32" in note
        assert [each.allow_tf32 for each in backends] == [False, True]
        backends[1].allow_tf32 = False
        with wider.without_tf32(torch.device("cuda")) as note:
            assert note is None
        with wider.without_tf32(torch.device("cpu")) as note:
            assert note is None
    finally:
        for each, value in zip(backends, before):
            each.allow_tf32 = value
