"""Imagic's two optimisations lower the denoising loss of the picture."""

import pytest
import torch
from torch import nn

from fastdiff.editing.imagic import interpolate, optimize_embedding, optimize_network
from fastdiff.train.losses import denoising_loss
from fastdiff.train.process import Process

PROCESS = Process.of("linear", "x0")
X0 = torch.tensor([[0.5, -0.5, 0.25]])


class Network(nn.Module):
    """Predicts what its embedding says."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3, bias=False)
        self.layer.weight = nn.Parameter(torch.tensor([[0.4, -0.1], [-0.2, 0.3], [0.1, 0.5]]))

    def forward(self, x, t, context):
        return self.layer(context)


def loss(network, cond):
    rows = {"context": cond["context"].expand(64, 2)}
    return float(
        denoising_loss(network, PROCESS, X0.expand(64, 3), torch.Generator().manual_seed(5), **rows).mean().detach()
    )


def test_the_embedding_then_the_network():
    network, target = Network(), {"context": torch.tensor([[1.0, -0.5]])}
    before = network.layer.weight.clone()
    optimized = optimize_embedding(network, PROCESS, X0, target, steps=50, lr=0.02)
    assert torch.equal(network.layer.weight, before)
    assert torch.equal(target["context"], torch.tensor([[1.0, -0.5]]))
    first, second = loss(network, target), loss(network, optimized)
    assert second < 0.9 * first
    optimize_network(network, PROCESS, X0, optimized, steps=100, lr=0.02)
    assert loss(network, optimized) < 0.5 * second
    assert network.layer.weight.grad is None
    mixed = interpolate(target["context"], optimized["context"], 0.0)
    assert torch.equal(mixed, optimized["context"])


def test_bad_arguments():
    cond = {"context": torch.ones(1, 2)}
    with pytest.raises(ValueError, match="one picture"):
        optimize_embedding(Network(), PROCESS, X0.expand(2, 3), cond)
    with pytest.raises(ValueError, match="must hold the embedding 'text'"):
        optimize_embedding(Network(), PROCESS, X0, cond, name="text")
    with pytest.raises(ValueError, match="frozen"):
        optimize_network(Network().requires_grad_(False), PROCESS, X0, cond)
    with pytest.raises(ValueError, match="alike"):
        interpolate(torch.ones(1, 2), torch.ones(1, 3), 0.5)
