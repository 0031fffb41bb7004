"""The pass "invariants" while a graph is captured."""

import pytest
import torch
from torch import fx, nn

from fastdiff.compiler.passes.invariants import Kept
from fastdiff.runtime import graphs


class Product(nn.Module):
    def forward(self, x, weight):
        return (x @ weight,)


def test_nothing_is_compared_or_kept_during_a_capture(monkeypatch):
    """A capture may not wait for values, and a replay must not have the results of what was captured."""
    kept, weight = Kept(fx.symbolic_trace(Product()), 1), torch.randn(3, 3)
    x, other = torch.randn(2, 2, 3)
    for _ in range(3):
        kept(x, weight)
    assert kept.hits == 1

    def equal(*arguments):
        pytest.fail("values were compared")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "equal", equal)
        patch.setattr(graphs, "capturing", lambda: True)
        for given in (x, other):
            (result,) = kept(given, weight)
            assert (result == given @ weight).all()
    assert torch.equal(kept(x, weight)[0], x @ weight)
    assert kept.hits == 2
