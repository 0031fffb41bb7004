"""Further ways to change an optimized model, one after the other on the same model: of its weights, in other shapes
too, of its parts, its settings, and by tools of PyTorch."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import fastdiff


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.linear, self.key = nn.Linear(64, 64, bias=False), nn.Linear(64, 64)
        self.embedding = nn.Embedding(10, 64)
        self.blocks = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])
        self.scale, self.options = 1.0, {"gain": 1.0}

    def forward(self, x, text, label):
        tokens = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = tokens + block(tokens)
        added = self.key(text).mean(1, keepdim=True) + self.embedding(label)[:, None]
        return tokens + self.linear(tokens) * self.scale * self.options["gain"] + added


class Adapted(nn.Module):
    """A layer with a LoRA of one's own around it."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.multiplier = layer, 1.0
        self.down, self.up = nn.Parameter(torch.randn(4, 64)), nn.Parameter(torch.randn(64, 4))

    def forward(self, x):
        return self.layer(x) + F.linear(F.linear(x, self.down), self.up) * self.multiplier


def new(*shape):
    return nn.Parameter(0.1 * torch.randn(shape))


def put(owner, **values):
    for name, value in values.items():
        setattr(owner, name, value)


def another_forward(layer):
    before, change = layer.forward, 0.1 * torch.randn(64, 64)
    layer.forward = lambda x: before(x) + x @ change


def weight_norm(layer):
    nn.utils.weight_norm(layer)
    layer.weight_g.data.mul_(2)


def exponential_average(m):
    for parameter in m.parameters():
        parameter.lerp_(torch.zeros_like(parameter), 0.1)


def flattened(m):
    vector = nn.utils.parameters_to_vector(m.parameters())
    nn.utils.vector_to_parameters(vector * 1.05, m.parameters())


def shared(m):
    m.share_memory()
    m.conv.weight_orig.data.mul_(2)  # it is pruned


WAYS = {
    "another embedding": lambda m: put(m, embedding=nn.Embedding(12, 64)),
    "an embedding with a word more": lambda m: put(m.embedding, weight=new(13, 64)),
    "a bias where there was none": lambda m: put(m.linear, bias=new(64)),
    "no bias": lambda m: put(m.key, bias=None),
    "a larger kernel": lambda m: put(m.conv, weight=new(64, 64, 5, 5), padding=(2, 2)),
    "a number": lambda m: put(m, scale=0.3),
    "a number in a dictionary": lambda m: m.options.update(gain=2.0),
    "a block more": lambda m: m.blocks.append(nn.Linear(64, 64)),
    "a block in place of another": lambda m: m.blocks.__setitem__(0, nn.Linear(64, 64)),
    "the blocks in another order": lambda m: put(m, blocks=nn.ModuleList(reversed(m.blocks))),
    "a LoRA around a layer": lambda m: put(m, linear=Adapted(m.linear)),
    "its multiplier": lambda m: put(m.linear, multiplier=0.4),
    "its weights": lambda m: m.linear.up.data.mul_(3),
    "another forward of a part": lambda m: another_forward(m.key),
    "pruned": lambda m: prune.l1_unstructured(m.blocks[1], "weight", 0.5),
    "channels pruned": lambda m: prune.ln_structured(m.conv, "weight", 0.3, n=2, dim=0),
    "weight norm by hooks": lambda m: weight_norm(m.blocks[0]),
    "its length": lambda m: m.blocks[0].weight_g.data.mul_(0.3),
    "parameters as a vector": flattened,
    "a parameter put in by hand": lambda m: m.key._parameters.__setitem__("weight", new(64, 64)),
    "statistics": lambda m: m.norm.running_mean.add_(3),
    "eps": lambda m: put(m.norm, eps=0.5),
    "dilation": lambda m: put(m.conv, dilation=(2, 2), padding=(4, 4)),
    "in shared memory": shared,
    "through half precision": lambda m: m.to(torch.bfloat16).to(torch.float32),
    "several at once": lambda m: torch._foreach_mul_([m.norm.weight, m.linear.layer.weight], 1.5),
    "through the state dict": lambda m: m.state_dict()["embedding.weight"].mul_(1.2),
    "out=": lambda m: torch.mul(m.linear.down.data, 1.3, out=m.linear.down.data),
    "an average": exponential_average,
}


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_each_change_is_seen_at_the_next_call():
    torch.manual_seed(0)
    model = Network().eval().requires_grad_(False)
    given = torch.randn(1, 64, 8, 8), torch.randn(1, 7, 64), torch.tensor([3])
    fastdiff.optimize(model)
    for _ in range(3):
        right = model(*given)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="fastdiff")
        for name, change in WAYS.items():
            before = right
            change(model)
            found, right = model(*given), model._call_impl(*given)
            unit = float(right.abs().max())
            assert float((found - right).abs().max()) < 5e-6 * unit, name
            assert float((before - right).abs().max()) > 2e-5 * unit, name
