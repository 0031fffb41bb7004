"""Calls and loops of optimized models as CUDA graphs, on a GPU."""

import threading

import pytest
import torch
from small_network import Net
from torch import nn

import fastdiff
from fastdiff import sample
from fastdiff.runtime import graphs
from fastdiff.schedules import VPDiscrete

pytestmark = pytest.mark.only_gpu
OPTIONS = dict(schedule=VPDiscrete.linear(), prediction="eps", steps=6)


class Prompted(nn.Module):
    """An image, a time and a prompt."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(4, 64, 3, padding=1), nn.GroupNorm(8, 64)
        self.key, self.out = nn.Linear(32, 64), nn.Conv2d(64, 4, 3, padding=1)

    def forward(self, x, t, text):
        h = nn.functional.silu(self.norm(self.conv(x))) + torch.sin(t)[:, None, None, None]
        return self.out(h + self.key(text).mean(1)[:, :, None, None])


def lines(model):
    found = [line.strip() for line in fastdiff.explain(model).model]
    return [line.removeprefix("on a GPU").strip() for line in found if line.startswith("on a GPU")]


@torch.no_grad()
def test_calls_are_replays():
    net = fastdiff.optimize(Prompted().cuda().eval())
    text = torch.randn(1, 7, 32, device="cuda")
    for seed in range(6):
        x, t = torch.randn(1, 4, 16, 16, device="cuda"), torch.rand(1, device="cuda")
        torch.testing.assert_close(net(x, t, text), net._call_impl(x, t, text), rtol=1e-3, atol=1e-3)
        if seed == 3:
            net.conv.weight.mul_(1.5)
    assert lines(net) == ["a CUDA graph, replayed 5 times"]


@torch.no_grad()
def test_two_threads_with_streams_of_their_own():
    net = fastdiff.optimize(Prompted().cuda().eval())
    given = [[torch.randn(*s, device="cuda") for s in ((1, 4, 16, 16), (1,), (1, 7, 32))] for _ in range(3)]
    expected = [net._call_impl(*each) for each in given]
    torch.cuda.synchronize()
    wrong = []

    def work(number):
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                if not torch.allclose(net(*given[number]), expected[number], rtol=1e-3, atol=1e-3):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_optimized_model_is_sampled_by_one_graph():
    """Comparing the prompt once waited for the device within the capture."""
    net = fastdiff.optimize(Prompted().cuda().eval())
    cond = {"text": torch.randn(1, 7, 32, device="cuda")}
    first = sample(net, (1, 4, 16, 16), seed=0, cond=cond, **OPTIONS)
    for _ in range(3):
        found = sample(net, (1, 4, 16, 16), seed=0, cond=cond, **OPTIONS)
        torch.testing.assert_close(found, first, rtol=1e-3, atol=1e-3)
    assert graphs.explain(net) == ["a CUDA graph"]


@pytest.mark.filterwarnings("ignore:fastdiff")
def test_a_failed_capture_leaves_the_process_as_it_was():
    """The generator stayed registered, and the next torch.compile failed."""

    class Waits(Net):
        def forward(self, x, t):
            return super().forward(x, t) * (1 + 0 * float(x.abs().max()))

    net, stream = Waits().cuda(), torch.cuda.current_stream()
    for _ in range(3):
        sample(net, (2, 3, 8, 8), seed=0, **OPTIONS)
    assert "could not be captured" in graphs.explain(net)[0]
    assert torch.cuda.current_stream() == stream
    torch.cuda.manual_seed(3)
    expected = torch.randn(4, device="cuda")
    torch.cuda.manual_seed(3)
    assert torch.equal(torch.randn(4, device="cuda"), expected)
    compiled = torch.compile(lambda x: x.sin() + 1, backend="eager")
    assert compiled(torch.zeros(3, device="cuda")).tolist() == [1, 1, 1]
    good = Net().cuda()
    for _ in range(3):
        sample(good, (2, 3, 8, 8), seed=0, **OPTIONS)
    assert graphs.explain(good) == ["a CUDA graph"]


@pytest.mark.parametrize("change", [fastdiff.optimize, fastdiff.restore, fastdiff.refresh])
def test_a_graph_from_before_a_change_is_not_replayed(change):
    net = Net().cuda().eval()
    if change is not fastdiff.optimize:
        fastdiff.optimize(net)
    for _ in range(3):
        before = sample(net, (2, 3, 8, 8), seed=0, **OPTIONS)
    known = {id(recording) for recording in graphs._recordings[net].values()}
    change(net)
    found = sample(net, (2, 3, 8, 8), seed=0, **OPTIONS)
    torch.testing.assert_close(found, before, rtol=1e-3, atol=1e-3)
    assert any(id(recording) not in known for recording in graphs._recordings[net].values())
