"""Faults that were found on a GPU: each had given a slow call, a broken process or another model's result."""

import warnings

import pytest
import torch
from small_network import Net

import fastdiff
from fastdiff import sample
from fastdiff.compiler.report import reports_of
from fastdiff.models.unet import UNet, UNetConfig
from fastdiff.runtime import graphs
from fastdiff.schedules import VPDiscrete

OPTIONS = dict(schedule=VPDiscrete.linear(), prediction="eps", steps=5, seed=0)


def unet(device):
    torch.manual_seed(0)
    model = UNet(UNetConfig((32, 64), 1, (2,), head_channels=32, groups=8, embedding_channels=64))
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model.to(device).eval().requires_grad_(False)


def calls(model):
    """Of the graphs that the compiler made of a model."""
    return sum(report.calls for report in reports_of(list(model.parameters())))


def test_an_optimized_model_is_sampled_as_a_graph(device):
    """The capture once failed, as something in the second run waited for the device."""
    model = unet(device)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
    with fastdiff.use("reference"):
        expected = sample(model, x, **OPTIONS)
    fastdiff.optimize(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [sample(model, x, **OPTIONS) for _ in range(4)]
    for each in found:
        torch.testing.assert_close(each, expected, rtol=1e-3, atol=1e-3)
    assert calls(model) > 0
    if device != "cpu":
        assert "a CUDA graph" in graphs.explain(model)


class Waits(Net):
    """Reads a value of the device, which a capture forbids."""

    def forward(self, x, t):
        return super().forward(x, t) * (1 + 0 * float(x.abs().max()))


@pytest.mark.only_gpu
def test_a_failed_capture_leaves_nothing(device):
    """The generator was once left with the broken graph, so that torch.randn raised in whatever came next."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    stream, state = torch.cuda.current_stream(), generator.get_state()
    net = Waits().to(device)
    first = sample(net, (2, 3, 8, 8), **OPTIONS)
    with pytest.warns(graphs.GraphWarning):
        assert torch.equal(sample(net, (2, 3, 8, 8), **OPTIONS), first)
    assert torch.cuda.current_stream() == stream
    assert torch.equal(generator.get_state(), state)
    assert torch.isfinite(torch.randn(64, device=device)).all()
    compiled = torch.compile(lambda x: x.sin() + torch.randn_like(x))
    assert torch.isfinite(compiled(torch.ones(64, device=device))).all()
    # a graph of one's own, and the next one of ours
    graph, held = torch.cuda.CUDAGraph(), torch.ones(8, device=device)
    with torch.cuda.graph(graph):
        doubled = 2 * held
    graph.replay()
    assert doubled.tolist() == [2.0] * 8
    other = Net().to(device)
    found = [sample(other, (2, 3, 8, 8), **OPTIONS) for _ in range(3)]
    assert all(torch.equal(each, found[0]) for each in found)
    assert graphs.explain(other) == ["a CUDA graph"]


def test_a_graph_from_before_optimize_is_not_replayed_after_it(device):
    """Nor one of the optimized model after `restore`."""
    model = unet(device)
    for _ in range(3):
        before = sample(model, (2, 3, 16, 16), **OPTIONS)
    fastdiff.optimize(model)
    for _ in range(3):
        found = sample(model, (2, 3, 16, 16), **OPTIONS)
    assert calls(model) > 0  # what runs, or was captured, is the optimized model
    torch.testing.assert_close(found, before, rtol=1e-3, atol=1e-3)
    fastdiff.restore(model)
    weight = next(model.parameters())
    with torch.no_grad():
        weight.mul_(0.5)
    with fastdiff.use("reference"):
        expected = sample(model, (2, 3, 16, 16), **OPTIONS)
    for _ in range(3):
        torch.testing.assert_close(sample(model, (2, 3, 16, 16), **OPTIONS), expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(expected, before, rtol=1e-3, atol=1e-3)
    assert calls(model) == 0


def test_a_tensor_on_another_device_is_an_error(device):
    net = Net().to(device)
    elsewhere = "meta" if device == "cpu" else "cpu"
    with pytest.raises(ValueError, match=f"x_init is on {elsewhere}, the model on"):
        sample(net, torch.zeros(2, 3, 8, 8, device=elsewhere), **OPTIONS)
    with pytest.raises(ValueError, match=rf"cond\['shift'\] is on {elsewhere}, the state on"):
        sample(net, (2, 3, 8, 8), cond={"shift": torch.zeros(2, device=elsewhere)}, **OPTIONS)
    with pytest.raises(ValueError, match=f"weight is on {elsewhere}"):
        fastdiff.ops.group_norm_silu(
            torch.zeros(1, 64, 4, 4, device=device), 8, weight=torch.ones(64, device=elsewhere)
        )
