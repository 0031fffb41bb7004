"""Semantic image synthesis: SPADE's norms against the formula, its guidance, maps of labels."""

import pytest
import torch
import torch.nn.functional as F
from conftest import relative_error
from test_families import make

import fastdiff
from fastdiff.models.parts.spade import SpadeNorm
from fastdiff.models.sdm import label_map


@torch.no_grad()
def test_the_norm_is_the_formula():
    """In float64: normalised by groups, times 1 + gamma, plus beta, both of the nearest labels."""
    torch.manual_seed(0)
    norm = SpadeNorm(64, 3).double()
    x, y = torch.randn(2, 64, 8, 8, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    hidden = F.relu(norm.hidden(y.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)))
    gamma, beta = (
        F.conv2d(hidden, norm.modulation.weight[part], norm.modulation.bias[part], padding=1)
        for part in (slice(0, 64), slice(64, None))
    )
    groups = x.reshape(2, 32, -1)
    normal = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x, y), normal.reshape(x.shape) * (1 + gamma) + beta)


@torch.no_grad()
def test_guidance_as_the_original_has_it():
    """The noise is extrapolated from the one of an empty map; the variance is the conditional one."""
    model, call = make("sdm")
    x, y = call["x"], call["y"]
    options = dict(schedule=fastdiff.schedules.VPDiscrete.linear(), prediction="eps+variance", solver="ddpm", steps=3,
                   seed=2)  # fmt: skip

    def by_hand(x, t):
        out, empty = model(x, t, y), model(x, t, torch.zeros_like(y))
        return torch.cat([empty[:, :3] + 1.5 * (out[:, :3] - empty[:, :3]), out[:, 3:]], dim=1)

    guided = fastdiff.sample(model, x, guidance=1.5, cond={"y": y}, uncond={"y": torch.zeros_like(y)}, **options)
    assert relative_error(guided, fastdiff.sample(by_hand, x, **options)) <= 2e-5
    assert relative_error(guided, fastdiff.sample(model, x, cond={"y": y}, **options)) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", ["sdm", "sdm-plain"])
def test_optimized(name):
    model, call = make(name)
    expected = model(**call)
    fastdiff.optimize(model)
    for _ in range(2):
        assert relative_error(model(**call), expected) <= 2e-5


def test_label_map():
    labels = torch.tensor([[[0, 0, 2], [0, 1, 2]]])
    y = label_map(labels, 3)
    assert y.shape == (1, 3, 2, 3)
    assert torch.equal(y.argmax(1), labels)
    assert torch.equal(y.sum(1), torch.ones(1, 2, 3))
    edges = label_map(labels, 3, torch.tensor([[[7, 7, 7], [7, 7, 9]]]))[:, 3]
    assert torch.equal(edges, torch.tensor([[[0.0, 0, 1], [0, 1, 1]]]))
    with pytest.raises(ValueError, match=r"labels must be \(B, H, W\) whole numbers in 0 .. 1, got torch.int64"):
        label_map(labels, 2)
    with pytest.raises(ValueError, match=r"instances must be \(1, 2, 3\), as labels, got \(1, 2\)"):
        label_map(labels, 3, labels[:, 0, :2])
