"""The summed weights by which an upsampled image is convolved: kept with the weight, made again when it changes, in and
outside of graphs. PyTorch stands in for the kernel that makes them, and a tape for a graph."""

import pytest
import torch
import torch.nn.functional as F
from compiler.as_on_gpu import stand_in
from compiler.test_graphs import check
from compiler.test_graphs_loop import on_cuda, run  # noqa: F401
from graph_stand_in import cuda_graphs  # noqa: F401
from torch import nn

import fastdiff
from fastdiff import ops
from fastdiff.ops.conv2d_weights import summed
from fastdiff.runtime import contents, graphs

pytestmark = pytest.mark.usefixtures("cuda_graphs")


class Sums:
    """Makes the weights of the phases, and counts."""

    def __init__(self):
        self.made = 0

    def __call__(self, weight):
        self.made += 1
        return torch.cat([both for row in pairs(weight, 2) for both in pairs(row, 3)])

    def convolved(self, x, weight, bias):
        """The upsampled image's convolution."""
        n, _, height, width = x.shape
        y = F.conv2d(x, summed(weight, self), padding=1).view(n, 2, 2, -1, height + 1, width + 1)
        parts = [y[:, i, j, :, i : i + height, j : j + width] for i in range(2) for j in range(2)]
        whole = torch.stack(parts, -1).view(*parts[0].shape, 2, 2).permute(0, 1, 2, 4, 3, 5)
        return whole.reshape(n, -1, 2 * height, 2 * width) + bias[:, None, None]


def pairs(weight, dim):
    a, b, c = weight.unbind(dim)
    return torch.stack((a, b + c), dim), torch.stack((a + b, c), dim)


class Upsampling(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


@pytest.fixture
def sums(monkeypatch):
    """Convolutions of upsampled images go by phases; weights are taken to be in another device's memory."""
    sums = Sums()
    computed = ops.conv2d.run

    def by_phases(a, inplace=False):
        return sums.convolved(a.x, a.weight, a.bias) if a.upsample == 2 else computed(a, inplace)

    monkeypatch.setattr(ops.conv2d, "run", by_phases)
    monkeypatch.setattr(contents, "is_ordinary", lambda tensor: False)
    return sums


@pytest.fixture
def net(monkeypatch):
    stand_in(monkeypatch)
    with torch.no_grad():
        yield fastdiff.optimize(Upsampling().eval())


def given(seed):
    return torch.randn(1, 4, 5, 3, generator=torch.Generator().manual_seed(seed))


def test_a_graph_of_a_call_reads_the_sums_that_are_kept(net, sums, cuda_graphs):  # noqa: F811
    for seed in range(5):
        check(net, given(seed))
    assert [graph.replays for graph in cuda_graphs] == [4]
    assert sums.made == 1
    net.conv.weight.mul_(2)
    for seed in range(5):
        check(net, given(seed))
    assert [graph.replays for graph in cuda_graphs][1:] == [4]
    assert sums.made == 2


def test_a_refreshed_weight_is_summed_again(net, sums):
    for seed in range(3):
        check(net, given(seed))
    net.conv.weight.data.mul_(3)  # unseen
    fastdiff.refresh(net)
    for seed in range(3):
        check(net, given(seed))
    assert sums.made == 2


def test_a_graph_of_which_the_watch_has_learnt_goes(net, sums):
    for seed in range(3):
        check(net, given(seed))
    net.conv.weight.data.mul_(3)
    watch = contents.Watch()
    watch.ask([net.conv.weight])
    watch.answered()
    for seed in range(3):
        check(net, given(seed))


@torch.no_grad()
def test_a_graph_of_a_loop_makes_the_sums_once_a_replay(sums, cuda_graphs):  # noqa: F811
    """So it misses no change, one through `.data` neither."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv

        def forward(self, x, t, text=None):
            y = sums.convolved(x, self.conv.weight, self.conv.bias)
            return F.avg_pool2d(y + sums.convolved(y[..., ::2, ::2], self.conv.weight, self.conv.bias), 2)

    def expected(x, t, text=None):
        weight, bias = conv.weight, conv.bias
        y = F.conv2d(F.interpolate(x, scale_factor=2.0), weight, bias, padding=1)
        return F.avg_pool2d(y + F.conv2d(F.interpolate(y[..., ::2, ::2], scale_factor=2.0), weight, bias, padding=1), 2)

    model = Model().eval()
    for seed in range(4):
        with fastdiff.use("reference"):
            right = run(expected, seed)
        torch.testing.assert_close(run(model, seed), right, rtol=1e-3, atol=1e-4)
        if seed == 2:
            conv.weight.data.mul_(1.5)
    assert [graph.replays for graph in cuda_graphs] == [3]
    assert sums.made == 2  # in the first run, and once in the graph


def test_somebody_elses_graph_makes_its_own_sums(sums, monkeypatch):
    """It would read them after the weight has changed, or is gone."""
    weight = torch.randn(3, 2, 3, 3)
    known = summed(weight, sums)
    assert summed(weight, sums) is known
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "capturing", lambda: True)
        inside = summed(weight, sums)
        assert inside is not known
        with contents.noted() as noted:
            assert summed(weight, sums) is known
            other = torch.randn(3, 2, 3, 3)
            made = summed(other, sums)
        assert [each is weight for each, _ in noted] == [True]
    assert torch.equal(inside, known)
    assert summed(other, sums) is not made  # which was the graph's


def test_sums_of_an_inference_tensor_are_not_kept(sums):
    with torch.inference_mode():
        weight = torch.randn(3, 2, 3, 3)
    summed(weight, sums)
    summed(weight, sums)
    assert sums.made == 2
    assert "its sums are made in each call" in str(fastdiff.explain())
