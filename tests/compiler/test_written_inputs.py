"""What a model writes to its inputs is in the caller's tensors, and the rest of the model is fast."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import fastdiff
from fastdiff.compiler.report import reports_of

WRITES_TO_THE_INPUT = {
    "method": lambda x: x.mul_(2),
    "flag": lambda x: F.relu(x, True),
    "view": lambda x: x.view(-1).add_(1),
    "out=": lambda x: torch.add(x, 1, out=x),
    "item": lambda x: x.__setitem__(0, 0.0),
    "copy": lambda x: x[1].copy_(x[0]),
    "foreach": lambda x: torch._foreach_add_([x], 1.0),
}


@pytest.mark.parametrize("write", WRITES_TO_THE_INPUT)
def test_inputs_that_the_model_changes_are_changed(write):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Conv2d(64, 64, 3, padding=1)

        def forward(self, x):
            WRITES_TO_THE_INPUT[write](x)
            return self.c(x)

    fast = fastdiff.optimize(Net().eval())
    with torch.no_grad():
        for size in (8, 8, 12, 12):
            ours = torch.randn(2, 64, size, size)
            theirs = ours.clone()
            torch.testing.assert_close(fast(ours), fast._call_impl(theirs), rtol=1e-4, atol=1e-4)
            assert torch.equal(ours, theirs)
    reports = reports_of([*fast.parameters()])
    assert [report.fallback for report in reports] == [None] * len(reports)
    assert all({notes.name: notes.matches for notes in report.passes}["conv2d"] == 1 for report in reports)


class Changing(nn.Module):
    """way: what is done to two inputs, of a layer's result; gives what else the model returns."""

    def __init__(self, way) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c = nn.Conv2d(64, 64, 3, padding=1)
        self.register_buffer("count", torch.zeros(64, 1, 1))
        self.way = way

    def forward(self, x, y):
        found = self.way(self, x, y)
        return self.c(x) + y, found


def several_times(net, x, y):
    x += 1
    h = net.c(x)
    x.mul_(h)
    y[:, 3:5] = x[:, :2]
    x[0].sub_(y[1])
    return h


def given_back(net, x, y):
    y.copy_(net.c(x))
    return y.add_(1)


def given_back_and_another(net, x, y):
    before = x * 2
    x.clamp_(-1, 1)
    return before, x


def a_buffer(net, x, y):
    net.count += x.mean((0, 2, 3))[:, None, None]
    return net.c(x * net.count)


def a_view_given_back(net, x, y):
    x[:, :3] = 0
    return x[:, 2:4]


def through_a_view_of_before(net, x, y):
    part, turned = x[:, 8:], x.transpose(2, 3)
    turned[:, :, 0] = 1
    part.relu_()
    return part + turned.transpose(2, 3)[:, 8:]


def by_condition(net, x, y):
    x[x > 1] = 0.5
    y.masked_fill_(x < 0, 2.0)
    return x.sum()


CHANGING = [
    several_times, given_back, given_back_and_another, a_buffer, a_view_given_back, through_a_view_of_before,
    by_condition,
]  # fmt: skip


@pytest.mark.parametrize("way", CHANGING, ids=lambda way: way.__name__)
def test_ways_to_change_inputs(way):
    ours, theirs = Changing(way).eval(), Changing(way).eval()
    fast = fastdiff.optimize(ours)
    with torch.no_grad():
        for batch, size in ((2, 8), (2, 8), (3, 12), (2, 12)):
            given = [torch.randn(batch, 64, size, size) for _ in range(2)]
            copies = [x.clone() for x in given]
            found, right = fast(*given), theirs(*copies)
            for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(right)):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
            for a, b in zip((*given, ours.count), (*copies, theirs.count)):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
            # What is given back is what was given, where the model gives that.
            same = [[a is x for x in given] for a in pytree.tree_leaves(found)]
            assert same == [[a is x for x in copies] for a in pytree.tree_leaves(right)]
    reports = reports_of([*ours.parameters()])
    fallbacks = [report.fallback for report in reports]
    if way is a_view_given_back:
        assert all("is a view of" in fallback for fallback in fallbacks)
    else:
        assert fallbacks == [None] * len(reports)


def test_an_input_that_lies_in_another_ones_memory():
    """Of the first call the capture sees it; later calls are asked."""
    ours, theirs = (Changing(lambda net, x, y: x.add_(1)).eval() for _ in range(2))
    fast = fastdiff.optimize(ours)
    with torch.no_grad():
        for shared in (False, True, False, True):
            both = torch.randn(4, 64, 8, 8)
            copies = both.clone()
            ours_given, theirs_given = ((t[:2], t[1:3] if shared else t[2:].clone()) for t in (both, copies))
            for a, b in zip(fast(*ours_given), theirs(*theirs_given), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(both, copies)
