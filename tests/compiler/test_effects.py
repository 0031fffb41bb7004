"""What writes to its arguments, and what is random, is known however it is spelled."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastdiff
from fastdiff.compiler.report import reports_of


class Inner(nn.Module):
    """A change in place between two layers, of which the second reads what was changed."""

    def __init__(self, change) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.change = change

    def forward(self, x):
        h = self.before(x) - 0.1
        made = self.change(h)
        return self.after(h), h, h if made is None else made


IN_PLACE = {
    "silu by position": lambda h: F.silu(h, True),
    "silu by name": lambda h: F.silu(h, inplace=True),
    "silu, all by name": lambda h: F.silu(input=h, inplace=True),
    "relu": lambda h: F.relu(h, True),
    "leaky relu": lambda h: F.leaky_relu(h, 0.1, True),
    "elu": lambda h: F.elu(h, 1.0, True),
    "hardswish": lambda h: F.hardswish(h, True),
    "hardsigmoid": lambda h: F.hardsigmoid(h, True),
    "hardtanh": lambda h: F.hardtanh(h, -0.5, 0.5, True),
    "relu6": lambda h: F.relu6(h, True),
    "selu": lambda h: F.selu(h, True),
    "celu": lambda h: F.celu(h, 1.0, True),
    "mish": lambda h: F.mish(h, True),
    "threshold": lambda h: F.threshold(h, 0.1, 2.0, True),
    "rrelu": lambda h: F.rrelu(h, 0.1, 0.3, False, True),
    "dropout": lambda h: F.dropout(h, 0.5, False, True),
    "relu_": F.relu_,
    "torch.sigmoid_": torch.sigmoid_,
    "torch.neg_": torch.neg_,
    "F.elu_": lambda h: F.elu_(h, 0.5),
    "method": lambda h: h.tanh_(),
    "method with arguments": lambda h: h.add_(h, alpha=2),
    "clamp_": lambda h: h.clamp_(-0.3, max=0.3),
    "masked_fill_": lambda h: h.masked_fill_(h < 0, 0.25),
    "fill_": lambda h: h.fill_(0.5),
    "zero_": lambda h: h.zero_(),
    "copy_": lambda h: h.copy_(h.flip(0)),
    "a view of it": lambda h: h[:, :8].mul_(2),
    "an item": lambda h: h.__setitem__((slice(None), 3), 0.5),
    "out=": lambda h: torch.add(h, 1, out=h),
    "out= of a view": lambda h: torch.mul(h[:, 1:3], 3, out=h[:, 1:3]),
    "foreach": lambda h: torch._foreach_mul_([h], 2.0),
    "several": lambda h: F.relu(F.silu(h, True).mul_(3), True),
    "square transposed": lambda h: h.transpose_(2, 3),
    "swapped": lambda h: h.swapaxes_(2, 3),
}


def iadd(h):
    h += 1
    h -= 0.5
    h *= 3
    h /= 2


def ipow(h):
    h **= 2
    h %= 0.7


IN_PLACE |= {"operators": iadd, "more operators": ipow}


@pytest.mark.parametrize("change", IN_PLACE)
def test_what_is_written_in_place_is_seen(change):
    torch.manual_seed(0)
    model = Inner(IN_PLACE[change]).eval()
    fast = fastdiff.optimize(model)
    with torch.no_grad():
        for size in (8, 12):
            x = torch.randn(2, 64, size, size)
            before = x.clone()
            for found, right in zip(fast(x), model._call_impl(x), strict=True):
                torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
            assert torch.equal(x, before)


ACCELERATED = ("silu by position", "leaky relu", "hardswish", "hardtanh", "method", "F.elu_", "operators", "rrelu")


@pytest.mark.parametrize("change", ACCELERATED)
def test_what_nobody_else_sees_is_no_reason_to_leave_the_graph(change):
    model = Inner(IN_PLACE[change]).eval()
    with torch.no_grad():
        fastdiff.optimize(model)(torch.randn(2, 64, 8, 8))
    (report,) = reports_of([*model.parameters()])
    assert report.fallback is None


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("prompt", [True, False])
def test_statistics_of_batch_norm_go_on(train, prompt):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(64) if prompt else nn.BatchNorm2d(64)
            self.c, self.k = nn.Conv2d(64, 64, 3, padding=1), nn.Linear(64, 64)

        def forward(self, x, text):
            if prompt:
                return self.c(x) + self.k(self.norm(text))[:, :, None, None]
            return self.c(self.norm(x)) + self.k(text)[:, :, None, None]

    torch.manual_seed(0)
    ours = Net().train(train)
    theirs = Net()
    theirs.load_state_dict(ours.state_dict())
    theirs.train(train)
    fast, text = fastdiff.optimize(ours), torch.randn(3, 64)
    with torch.no_grad():
        for _ in range(5):
            x = torch.randn(3, 64, 8, 8)
            torch.testing.assert_close(fast(x, text), theirs(x, text), rtol=1e-4, atol=1e-4)
            for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
                torch.testing.assert_close(a, b)


class Noisy(nn.Module):
    """Something of the prompt alone, and random."""

    def __init__(self, draw) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.image = nn.Conv2d(64, 64, 3, padding=1)
        self.draw = draw

    def forward(self, x, text):
        return self.image(x) + self.second(self.draw(self.first(text))).mean(1)[:, :, None, None]


def heads(h):
    return h.unflatten(-1, (4, 16)).transpose(1, 2)


RANDOM = {
    "bernoulli": lambda h: h * torch.bernoulli(torch.sigmoid(h)),
    "normal": lambda h: torch.normal(h, 0.5),
    "normal of two": lambda h: torch.normal(h, h.abs() + 0.1),
    "poisson": lambda h: torch.poisson(h.abs() * 3),
    "multinomial": lambda h: h[:, torch.multinomial(h[0].abs().sum(1), 3)],
    "rand_like": lambda h: h + torch.rand_like(h),
    "randn": lambda h: h + torch.randn(h.shape),
    "randint": lambda h: h + torch.randint(0, 1000, (1,)),
    "randperm": lambda h: h[:, torch.randperm(6)[:3]],
    "dropout": lambda h: F.dropout(h, 0.5, True),
    "dropout in place": lambda h: F.dropout(h * 2, 0.5, True, True),
    "alpha dropout": lambda h: F.alpha_dropout(h, 0.5, True),
    "feature dropout": lambda h: torch.feature_dropout(h, 0.5, True),
    "rrelu": lambda h: F.rrelu(h, 0.1, 0.9, True),
    "gumbel": lambda h: F.gumbel_softmax(h, dim=-1),
    "attention with dropout": lambda h: (
        F.scaled_dot_product_attention(heads(h), heads(h), heads(h), dropout_p=0.5).transpose(1, 2).flatten(2)
    ),
    "attention with dropout by position": lambda h: F.scaled_dot_product_attention(h, h, h, None, 0.5),
    "in place": lambda h: h + torch.empty_like(h).normal_(),
    "in place on a copy": lambda h: (h * 1.5).bernoulli_(),
    "exponential": lambda h: h + torch.zeros_like(h).exponential_(),
    "uniform": lambda h: h + h.new_empty(6, 1).uniform_(),
}


@pytest.mark.parametrize("draw", RANDOM)
def test_random_numbers_of_the_prompts_side_stay_random(draw):
    """The same generator gives eager's results, call by call: nothing is frozen, none is drawn twice."""
    torch.manual_seed(0)
    model = Noisy(RANDOM[draw]).eval()
    fast = fastdiff.optimize(model)
    x, text = torch.randn(1, 64, 8, 8), torch.randn(1, 6, 64)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the model was captured in parts
        fast(x, text)
        torch.manual_seed(1)
        found = [fast(x, text) for _ in range(6)]
        torch.manual_seed(1)
        right = [model._call_impl(x, text) for _ in range(6)]
    for ours, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not any(torch.allclose(found[0], other) for other in found[1:])


def test_numbers_drawn_and_not_used_are_drawn():
    class Net(nn.Module):
        def forward(self, x):
            torch.randn(3)
            return x + torch.randn(x.shape)

    fast, x = fastdiff.optimize(Net()), torch.zeros(2, 8)
    with torch.no_grad():
        fast(x)
        torch.manual_seed(1)
        found = fast(x)
        torch.manual_seed(1)
        assert torch.equal(found, fast._call_impl(x))


def test_what_is_not_random_is_kept():
    """Attention with a dropout of 0, and dropout outside of training, are no reason to compute again."""
    model = Noisy(lambda h: F.scaled_dot_product_attention(h, h, h, dropout_p=0.0) + F.dropout(h, 0.5, False)).eval()
    fast, x, text = fastdiff.optimize(model), torch.randn(1, 64, 8, 8), torch.randn(1, 6, 64)
    with torch.no_grad():
        for _ in range(4):
            fast(x, text)
    (report,) = reports_of([*model.parameters()])
    assert report.graph.module.kept.hits == 2


def test_numbers_drawn_in_place_are_no_reason_to_leave_the_graph():
    model = Noisy(lambda h: h + torch.empty_like(h).normal_() + (h * 1.5).bernoulli_()).eval()
    with torch.no_grad():
        fastdiff.optimize(model)(torch.randn(1, 64, 8, 8), torch.randn(1, 6, 64))
    (report,) = reports_of([*model.parameters()])
    assert report.fallback is None
