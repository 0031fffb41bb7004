"""Caching across steps in a network that is not fastdiff's own."""

import pytest
import torch
from torch import nn

import fastdiff
from fastdiff.models.unet import UNet, UNetConfig
from fastdiff.profiling import Subject
from fastdiff.profiling.drawing import Drawer
from fastdiff.profiling.settings import Setting
from fastdiff.profiling.usage import python_line


class Theirs(nn.Module):
    """A U-Net of two skips."""

    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x, t):
        outer = self.stem(x) * t[:, None, None, None].cos()
        inner = self.down(outer.relu())
        h = self.middle(inner.relu()).relu()
        h = self.up(torch.cat([h, inner], 1)).relu()
        return self.head(torch.cat([h, outer], 1))


@pytest.fixture
def subject():
    torch.manual_seed(0)
    return Subject("theirs", Theirs().eval().requires_grad_(False), (3, 8, 8), "cosine", "v")


def test_full_calls_are_counted_and_the_network_is_left_as_it_is(subject):
    drawer = Drawer(subject, 0)
    options = dict(solver="ddim", steps=5, batch=2, backend="optimize")
    reused = drawer.draw(Setting(**options, cache="deep:2"), 0, 4)
    assert (reused.calls, reused.full_calls) == (5, 3)
    assert subject.model._compiled_call_impl is None
    exact = drawer.draw(Setting(**options | {"backend": "auto"}), 0, 4)
    assert exact.full_calls == 5
    assert not torch.allclose(exact.samples, reused.samples, atol=1e-4)
    exact = drawer.draw(Setting(**options, cache="deep:t=1e-9"), 0, 4)
    torch.testing.assert_close(exact.samples, drawer.draw(Setting(**options), 0, 4).samples, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["auto", "optimize"])
def test_full_calls_of_fastdiff_s_own_networks_are_counted(backend):
    """Where they are optimized too: they were all taken for full ones, and a search found that reuse saves nothing."""
    torch.manual_seed(0)
    config = UNetConfig((16, 32), 1, (), embedding_channels=16, groups=4)
    subject = Subject("ours", UNet(config).eval().requires_grad_(False), (3, 8, 8), "cosine", "v")
    drawn = Drawer(subject, 0).draw(Setting("ddim", 5, batch=2, backend=backend, cache="deep:2"), 0, 4)
    assert (drawn.calls, drawn.full_calls) == (5, 3)


def test_the_backend_optimize_is_for_its_settings_alone(subject):
    """All later settings ran the optimized network, and so did the caller."""
    drawer = Drawer(subject, 0)
    fast = drawer.draw(Setting("ddim", 2, batch=2, backend="optimize"), 0, 2)
    assert subject.model._compiled_call_impl is None
    network = drawer.network(Setting("ddim", 2, batch=2, backend="optimize"))
    assert "graph 0: captured" in str(fastdiff.explain(network))
    torch.testing.assert_close(fast.samples, drawer.draw(Setting("ddim", 2, batch=2), 0, 2).samples)


def test_it_is_part_of_optimize(subject):
    with pytest.raises(ValueError, match=r"part of optimize\(\): profile it with the backend \"optimize\""):
        Drawer(subject, 0).draw(Setting("ddim", 5, cache="deep:2"), 0, 1)
    line = python_line(subject, Setting("ddim", 5, cache="deep:2", backend="optimize"))
    assert "fastdiff.optimize(subject.model, reuse='deep:2')" in line
