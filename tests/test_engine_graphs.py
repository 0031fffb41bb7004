"""Graphs of a sampling loop, on the CPU with tapes in their place: what is captured, replayed, kept and said."""

import contextlib
import functools
import gc
import warnings
import weakref

import pytest
import torch
from conftest import relative_error
from graph_stand_in import StandIn
from small_network import Net
from tape import COMMON, VP, both
from torch import nn

from fastdiff import CFG, sample
from fastdiff.caching import Cached
from fastdiff.engine import Inputs, recorded
from fastdiff.models.parts.attention import Controller, controlled
from fastdiff.models.unet import UNet, UNetConfig
from fastdiff.noise import CounterNoise
from fastdiff.runtime import cuda_graph, graphs
from fastdiff.schedules import VPDiscrete


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "unipc-3", "dpmpp-2s-ancestral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guided", [False, True])
def test_replays_are_the_same_as_launches(on_cuda, solver, dtype, guided):
    net = Net(dtype)

    def options(shift):
        cond = {"shift": torch.tensor([shift, -0.2]).to(dtype)}
        return dict(cond=cond, uncond={"shift": torch.zeros(2).to(dtype)}, guidance=2.5) if guided else dict(cond=cond)

    runs = [
        dict(seed=3, schedule=VP, **options(0.3)),
        dict(seed=4, schedule=VP, **options(0.1)),
        dict(seed=(2**63 + 1, 9), schedule=VPDiscrete.scaled_linear(), **options(-0.7)),
    ]
    for number, run in enumerate(runs):
        ours, theirs = both(net, (2, 3, 8, 8), solver=solver, prediction="eps", steps=6, **run)
        assert torch.equal(ours, theirs), number
        assert graphs.explain(net) == ["a CUDA graph" if number else "launches: run once, the second run is captured"]
    assert not torch.equal(ours, sample(net, (2, 3, 8, 8), solver=solver, prediction="eps", steps=6, **runs[0]))


class Reads(Net):
    """With words (B, S) in place of a shift."""

    def forward(self, x, t, words):
        return super().forward(x, t, words.softmax(1).square().sum(1) * words.shape[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replays_with_prompts_of_different_lengths(on_cuda, dtype):
    net = Reads(dtype)
    for seed in range(4):
        words = torch.randn(2, 9, generator=torch.Generator().manual_seed(seed)).to(dtype)
        halves = dict(cond={"words": words}, uncond={"words": words[:, 1:5]})
        ours, theirs = both(net, (2, 3, 8, 8), seed=seed, guidance=2.5, **halves, **COMMON)
        assert torch.equal(ours, theirs)
    assert graphs.explain(net) == ["a CUDA graph"]


def test_counted_reuse_is_captured(on_cuda):
    """Which calls are full is in the graph, from the first of the run on."""
    config = UNetConfig((16, 16), 1, (), embedding_channels=16, groups=4)
    torch.manual_seed(0)
    net = UNet(config).eval().requires_grad_(False)
    torch.nn.init.normal_(net.conv_out.weight, std=0.1)
    cached = Cached(net, "deep:3")
    for seed in range(4):
        ours, theirs = both(cached, (2, 3, 8, 8), seed=seed, **COMMON)
        assert relative_error(ours, theirs) <= 1e-5, seed  # the operators have kernels of their own
        assert relative_error(ours, sample(net, (2, 3, 8, 8), seed=seed, **COMMON)) > 1e-3
    assert graphs.explain(cached) == ["a CUDA graph"]


def test_no_graph_while_attention_is_controlled(on_cuda):
    config = UNetConfig((16, 16), 1, (0,), head_channels=16, embedding_channels=16, groups=4)
    torch.manual_seed(0)
    net = UNet(config).eval().requires_grad_(False)
    for part in net.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(part.weight, std=0.1)

    class Uniform(Controller):
        def edit(self, place, maps):
            return torch.full_like(maps, 1 / maps.shape[-1])

    plain = [sample(net, (1, 3, 8, 8), seed=0, **COMMON) for _ in range(3)]
    with controlled(net, Uniform()):
        changed, expected = both(net, (1, 3, 8, 8), seed=0, **COMMON)
        assert graphs.explain(net) == ["launches: a controller sees the attention"]
    assert relative_error(changed, expected) <= 1e-5
    assert relative_error(changed, plain[2]) > 1e-3
    assert torch.equal(sample(net, (1, 3, 8, 8), seed=0, **COMMON), plain[2])
    assert graphs.explain(net) == ["a CUDA graph"]


def test_results_are_the_callers(on_cuda):
    net = Net()
    results = [sample(net, (1, 3, 8, 8), seed=seed, **COMMON) for seed in range(4)]
    again = [sample(net, (1, 3, 8, 8), seed=seed, **COMMON) for seed in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(results, again))


def test_what_a_graph_is_not_good_for_is_captured_anew(on_cuda):
    net = Net()

    def run(**options):
        for _ in range(3):
            ours, theirs = both(net, (2, 3, 8, 8), **{**COMMON, "seed": 0, **options})
            assert torch.equal(ours, theirs)
        return len(graphs.explain(net))

    assert run() == 1
    with torch.no_grad():
        net.conv.weight.mul_(2)  # in its place: the graph reads it
    assert run() == 1
    net.conv.weight = nn.Parameter(torch.randn_like(net.conv.weight))
    assert run() == 2
    net.factor = 0.5
    assert run() == 3
    assert run(steps=7) == 4
    assert run(solver="heun") == graphs.MAX_GRAPHS
    graphs.forget(net)
    assert run() == 1


def test_a_model_that_cannot_be_captured_is_launched_and_that_is_said(on_cuda, monkeypatch):
    class Refuses(StandIn):
        def capture(self, body):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "graph_type", Refuses)
    net = Net()
    sample(net, (2, 3, 8, 8), seed=0, **COMMON)
    with pytest.warns(graphs.GraphWarning, match="not permitted when stream is capturing"):
        ours, theirs = both(net, (2, 3, 8, 8), seed=0, **COMMON)
    assert torch.equal(ours, theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        sample(net, (2, 3, 8, 8), seed=0, **COMMON)
    assert "not permitted when stream is capturing" in graphs.explain(net)[0]


class FakeCuda:
    """As much of torch.cuda as a capture touches. A broken capture ends with an exception, and the stream, the
    allocator and the generator stay as they were during it, as with torch's."""

    def __init__(self, monkeypatch):
        self.stream, self.generator_is_captured, self.broken, self.stuck = "main", False, False, False
        self.pools, self.users, self.default_generators, self.numbers = [], {}, [self.Generator(self)], 0
        for name in ("CUDAGraph", "graph", "Stream", "graph_pool_handle", "default_generators"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.stream)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "stream", stream))
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self.release, raising=False)
        monkeypatch.setattr(graphs.CudaGraph, "_captured", weakref.WeakSet())
        monkeypatch.setattr(graphs.CudaGraph, "_streams", {})
        monkeypatch.setattr(cuda_graph, "_draws", lambda generator, device: not self.generator_is_captured)

    class CUDAGraph:
        pass

    class Stream:
        pass

    class Generator:
        def __init__(self, fake):
            self.fake = fake

        def clone_state(self):
            return "clone"

        def graphsafe_set_state(self, state):
            assert state == "clone"
            self.fake.generator_is_captured = False

    def graph_pool_handle(self):
        self.numbers += 1
        return (0, self.numbers)

    def end(self, device, pool):
        if pool not in self.pools:
            raise RuntimeError("not currently recording to this pool")
        self.pools.remove(pool)

    def release(self, device, pool):
        self.users[pool] -= 1

    @contextlib.contextmanager
    def graph(self, graph, pool=None, stream=None, capture_error_mode="global"):
        graph.memory, graph.stream, graph.mode = pool or self.graph_pool_handle(), stream, capture_error_mode
        before, self.stream = self.stream, stream
        self.generator_is_captured = True
        self.pools.append(graph.memory)
        self.users[graph.memory] = self.users.get(graph.memory, 0) + 1
        try:
            yield
        finally:
            if self.broken:
                self.broken = False
                raise RuntimeError("operation failed due to a previous error during capture")
            self.end(0, graph.memory)
            self.stream, self.generator_is_captured = before, self.stuck


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Interrupted, torch.cuda.OutOfMemoryError, None])
@pytest.mark.parametrize("stuck", [False, True])
def test_a_capture_that_fails_leaves_nothing_behind(monkeypatch, error, stuck):
    fake = FakeCuda(monkeypatch)
    made = []

    def capture(device=0, error=None):
        def body():
            if error is not None:
                raise error("the first error")

        made.append(graphs.CudaGraph(torch.device("cuda", device)))
        made[-1].capture(body)
        return made[-1].graph

    first, second, elsewhere = capture(), capture(), capture(1)
    assert (second.memory, second.stream) == (first.memory, first.stream)
    assert elsewhere.memory is not first.memory
    assert first.mode == "thread_local"  # other threads may allocate memory meanwhile
    users = fake.users[first.memory]
    fake.broken, fake.stuck = True, stuck
    with pytest.raises(error or RuntimeError, match="the first error" if error else "previous error during capture"):
        capture(error=error)
    assert fake.stream == "main"
    assert not fake.generator_is_captured
    assert fake.pools == []
    assert fake.users[first.memory] == users
    fake.stuck = False
    broken, third, fourth = made[-1].graph, capture(), capture()
    assert third.memory is not broken.memory
    assert third.stream is not broken.stream
    assert (fourth.memory, fourth.stream) == (third.memory, third.stream)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_of_the_model_in_a_capture_is_no_failure_of_torch(monkeypatch, error):
    """The capture ends as it should, with what was queued until then."""
    fake = FakeCuda(monkeypatch)

    def body():
        raise error("of the model")

    with pytest.raises(error, match="of the model"):
        graphs.CudaGraph(torch.device("cuda", 0)).capture(body)
    assert (fake.stream, fake.generator_is_captured, fake.pools) == ("main", False, [])


def test_why_a_run_is_not_captured(monkeypatch):
    net, noise = Net(), CounterNoise.of(0, 1)

    def reason(**options):
        return recorded.cannot_capture(Inputs(noise, **options), torch.device("cuda"))

    assert reason() is None
    assert reason(cond={"a": {"b": 1}}) is None
    assert "noise is given" in reason(draw=lambda n: None)
    assert "the gradient 'classifier' is a function" in reason(gradients={"classifier": lambda x, t: x})
    assert "cond['a']['b']" in reason(cond={"a": {"b": [1]}})
    assert recorded.cannot_capture(Inputs(noise), torch.device("cpu")) == "launches: there are no graphs on cpu"
    assert graphs.unseen(net) is None
    assert graphs.unseen(net.forward) is None
    assert graphs.unseen(lambda x, t: x) is None
    held = object()
    assert graphs.unseen(lambda x, t: held and x) == "launches: 'held' is of the type object, which may change unseen"
    assert "may change unseen" in graphs.explain(lambda x, t: held and x)[0]
    monkeypatch.setenv("FASTDIFF_GRAPH", "0")
    assert "FASTDIFF_GRAPH" in reason()
    assert "FASTDIFF_GRAPH" in graphs.explain(net)[0]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_graph_does_not_keep_its_model(on_cuda, wrapped):
    net = Net()
    model = functools.partial(lambda net, x, t: net(x, t), net) if wrapped else net
    for _ in range(3):
        sample(model, (1, 3, 8, 8), seed=0, guidance=CFG(2.0), cond={}, uncond={}, **COMMON)
    assert graphs.explain(model) == ["a CUDA graph"]
    alive = weakref.ref(net)
    del net, model
    gc.collect()
    assert alive() is None


def test_a_function_is_captured_with_what_it_refers_to(on_cuda):
    settings, nets = {"factor": 1.0}, [Net(), Net()]
    nets[1].factor = 0.5

    def double(x):
        return settings["factor"] * x

    def make(net, bias=0.0):
        return lambda x, t: double(net(x, t)) + bias

    model = make(nets[0])
    first = [sample(model, (2, 3, 8, 8), seed=seed, **COMMON) for seed in range(3)]
    assert graphs.explain(model) == ["a CUDA graph"]
    settings["factor"] = 1.5  # seen: another capture
    for _ in range(3):
        ours, theirs = both(model, (2, 3, 8, 8), seed=0, **COMMON)
        assert torch.equal(ours, theirs)
    assert not torch.equal(ours, first[0])
    assert graphs.explain(model) == ["a CUDA graph"] * 2
    settings["factor"] = 1.0
    assert torch.equal(sample(model, (2, 3, 8, 8), seed=1, **COMMON), first[1])
    model.__closure__[model.__code__.co_freevars.index("net")].cell_contents = nets[1]
    for _ in range(3):
        ours, theirs = both(model, (2, 3, 8, 8), seed=0, **COMMON)
        assert torch.equal(ours, theirs)
    assert len(graphs.explain(model)) == 3
    graphs.forget(model)
    assert graphs.explain(model) == []
