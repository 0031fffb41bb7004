"""The engine of a GPU and its graphs on the CPU: the kernels' own function runs there, a tape takes a graph's place."""

import contextlib
import functools
import gc
import math
import warnings
import weakref

import pytest
import torch
from conftest import relative_error
from small_network import Net
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from triton_process import interpret

import fastdiff
from fastdiff import CFG, SamplingError, sample
from fastdiff.caching import Cached
from fastdiff.engine import Inputs, bound, loop, recorded, steps
from fastdiff.engine.steps import NativeSteps
from fastdiff.models.parts.attention import Controller, controlled
from fastdiff.models.unet import UNet, UNetConfig
from fastdiff.noise import CounterNoise
from fastdiff.runtime import choice, cuda, graphs
from fastdiff.runtime.fingerprint import fingerprint
from fastdiff.schedules import VPDiscrete
from fastdiff.solvers import SOLVERS

VP = VPDiscrete.linear()
COMMON = dict(schedule=VP, prediction="eps", steps=6)
PROGRAMS = [name for name, solver in SOLVERS.items() if not solver.adaptive]


class Adapted(nn.Module):
    """A layer with an adapter, as LoRA puts it in the layer's place; the scale lies in a dictionary."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.adapter = nn.Conv2d(3, 3, 1)
        self.scaling = {"default": 1.0}

    def forward(self, x):
        return self.layer(x) + self.scaling["default"] * self.adapter(x)


class Holds(nn.Module):
    """What a network may refer to besides parameters."""

    def __init__(self):
        super().__init__()
        self.activation = nn.Tanh()
        self.table = torch.tensor([0.5])  # no buffer
        self.layers = [nn.Tanh()]  # not registered
        self.adapted = Adapted(nn.Identity())
        self.processor = functools.partial(torch.mul, other=0.5)

    def forward(self, x, t):
        return self.processor(self.layers[0](self.adapted(self.activation(x)) * self.table))


class Tape(TorchDispatchMode):
    """In the place of a CUDA graph: what a function does to memory, to be done again without Python's part of it.

    A capture does run the operators, as the tape needs their results' shapes; `poison` then destroys what they left."""

    current: "Tape | None" = None
    device_type = "cpu"

    def __init__(self, device):
        super().__init__()
        self.entries = []
        self.results = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        result = function(*args, **kwargs)
        tensors = [t for t in (result if isinstance(result, (tuple, list)) else [result]) if torch.is_tensor(t)]
        fresh = [t for t in tensors if t.untyped_storage().data_ptr() not in given]
        self.results += fresh
        if tensors and not fresh and function._schema.is_mutable:
            self.entries.append(lambda: function(*args, **kwargs))
        elif fresh:

            def again():
                made = function(*args, **kwargs)
                for target, value in zip(tensors, made if isinstance(made, (tuple, list)) else [made]):
                    target.copy_(value)

            self.entries.append(again)
        return result

    def capture(self, body):
        Tape.current = self
        try:
            with self:
                body()
        finally:
            Tape.current = None
        for result in self.results:
            if result.is_floating_point():
                result.fill_(math.nan)

    def replay(self):
        for entry in self.entries:
            entry()


class TapedSteps(NativeSteps):
    def run(self, number, cond, uncond):
        super().run(number, cond, uncond)
        if Tape.current is not None:
            Tape.current.entries.append(lambda: NativeSteps.run(self, number, cond, uncond))


@pytest.fixture
def on_cuda(monkeypatch):
    """Runs under use("auto") take the device's engine."""
    choose_engine = bound.choose_engine
    monkeypatch.setattr(
        loop, "choose_engine", lambda p, x: "device" if choice.current() == "auto" else choose_engine(p, x)
    )
    monkeypatch.setattr(steps, "choose", lambda device: (TapedSteps, ""))
    monkeypatch.setattr(graphs, "graph_type", Tape)


def both(*arguments, **options):
    """The sample of this engine, and that of the reference engine."""
    ours = sample(*arguments, **options)
    with fastdiff.use("reference"):
        return ours, sample(*arguments, **options)


@pytest.mark.parametrize("solver", PROGRAMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_the_same_bits_as_the_reference(on_cuda, solver, dtype):
    """Launches, for what is no module."""
    pointwise = lambda x, t: torch.tanh(x)  # noqa: E731
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours, theirs = both(pointwise, x, solver=solver, seed=3, **COMMON)
    assert torch.equal(ours, theirs)


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("device", [None, "meta"])
def test_the_default_dtype_and_device_change_nothing(on_cuda, dtype, device):
    net = Net()
    plain = sample(net, (2, 3, 8, 8), seed=3, solver="ddpm", **COMMON)
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        found = [sample(net, (2, 3, 8, 8), seed=3, solver="ddpm", **COMMON) for _ in range(3)]
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert all(torch.equal(each, plain) for each in found)


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


def halve(part):
    """Like fastdiff.optimize, with a result that can be told from the original's."""
    fastdiff.optimize(part)
    part._compiled_call_impl = lambda *arguments, **options: 0.5 * part._call_impl(*arguments, **options)


def replace_forward(part):
    forward = part.forward
    part.forward = lambda x: 0.5 * forward(x)


CHANGES = {
    "what optimize() sets": (Net, halve),
    "what optimize() sets in a part": (Net, lambda net: halve(net.conv)),
    "an adapter": (Net, lambda net: setattr(net, "conv", Adapted(net.conv))),
    "an adapter's scale": (Holds, lambda net: net.adapted.scaling.update(default=0.5)),
    "a hook": (Net, lambda net: net.conv.register_forward_hook(lambda module, x, y: 0.5 * y)),
    "a hook before": (Net, lambda net: net.conv.register_forward_pre_hook(lambda module, x: (0.5 * x[0],))),
    "a parameter removed": (Net, lambda net: setattr(net.conv, "bias", None)),
    "another module": (Holds, lambda net: setattr(net, "activation", nn.Sigmoid())),
    "another module in a list": (Holds, lambda net: net.layers.__setitem__(0, nn.Sigmoid())),
    "another tensor": (Holds, lambda net: setattr(net, "table", torch.tensor([0.25]))),
    "another object": (Holds, lambda net: setattr(net, "processor", functools.partial(torch.mul, other=0.25))),
    "another forward": (Net, lambda net: replace_forward(net.conv)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_graph_is_not_replayed_after_a_change_of(on_cuda, change):
    make, apply = CHANGES[change]
    net = make()
    before = [sample(net, (2, 3, 8, 8), seed=0, **COMMON) for _ in range(3)]
    assert graphs.explain(net) == ["a CUDA graph"]
    apply(net)
    for _ in range(3):
        ours, theirs = both(net, (2, 3, 8, 8), seed=0, **COMMON)
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, before[0])
    assert graphs.explain(net) == ["a CUDA graph"] * 2


def add_data(weight):
    weight.data += 0.5


def set_data(weight):
    weight.data = torch.zeros_like(weight)
    weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))


def one_channel(weight):
    weight.data[1] = 0


def scaled(net):
    return {name: 1.5 * tensor for name, tensor in net.state_dict().items()}


WEIGHTS = {
    "in place": lambda net: net.conv.weight.mul_(1.5),
    "data in place": lambda net: net.conv.weight.data.mul_(1.5),
    "data +=": lambda net: add_data(net.conv.weight),
    "data =": lambda net: set_data(net.conv.weight),
    "one channel": lambda net: one_channel(net.conv.weight),
    "numpy": lambda net: net.conv.weight.detach().numpy().__setitem__(0, 0.25),
    "half and float": lambda net: net.half().float(),
    "load_state_dict": lambda net: net.load_state_dict(scaled(net)),
    "load_state_dict(assign=True)": lambda net: net.load_state_dict(scaled(net), assign=True),
    "another parameter": lambda net: setattr(net.conv, "weight", nn.Parameter(2 * net.conv.weight)),
    "another part": lambda net: setattr(net, "conv", nn.Conv2d(3, 3, 3, padding=1)),
    "a parametrization": lambda net: nn.utils.parametrize.register_parametrization(net.conv, "weight", nn.Tanh()),
}


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("way", WEIGHTS)
def test_a_graph_has_the_weights_of_the_model(on_cuda, way, optimized):
    net = Net()
    if optimized:
        fastdiff.optimize(net)
    with torch.no_grad():
        before = [sample(net, (2, 3, 8, 8), seed=0, **COMMON) for _ in range(3)]
        WEIGHTS[way](net)
        for _ in range(3):
            ours, theirs = both(net, (2, 3, 8, 8), seed=0, **COMMON)
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
            assert not torch.equal(ours, before[0])


def test_a_hook_of_all_modules_is_seen(on_cuda):
    net = Net()
    before = [sample(net, (2, 3, 8, 8), seed=0, **COMMON) for _ in range(3)]
    hook = nn.modules.module.register_module_forward_hook(lambda module, x, y: 0.5 * y)
    try:
        after = [both(net, (2, 3, 8, 8), seed=0, **COMMON) for _ in range(3)]
    finally:
        hook.remove()
    assert all(torch.equal(ours, theirs) and not torch.equal(ours, before[0]) for ours, theirs in after)
    assert torch.equal(sample(net, (2, 3, 8, 8), seed=0, **COMMON), before[0])
    assert graphs.explain(net) == ["a CUDA graph"] * 2


def test_optimize_and_restore_between_runs(on_cuda, monkeypatch):
    """The graph of the original is used again after restore(): nothing else has changed."""
    net = Net()

    def run():
        return sample(net, (2, 3, 8, 8), seed=0, **COMMON)

    original = [run() for _ in range(3)]
    for made in (1, 2):
        fastdiff.optimize(net)
        fast_call = type(net._compiled_call_impl)
        with monkeypatch.context() as patch:  # so that it can be told from the original
            patch.setattr(fast_call, "__call__", lambda self, *a, **options: 0.5 * self.original(*a, **options))
            fast = [run() for _ in range(3)]
        assert not torch.equal(fast[0], original[0])
        assert all(torch.equal(one, fast[0]) for one in fast)
        assert len(graphs.explain(net)) == 1 + made  # another optimize() has another graph
        fastdiff.restore(net)
        assert torch.equal(run(), original[0])
        assert graphs.explain(net) == ["a CUDA graph"] * (1 + made)


def test_a_run_does_not_change_what_is_seen_of_a_model():
    """Else no run would find the graph of the one before."""
    models = {"optimized": fastdiff.optimize(Net()), "bundled": fastdiff.load("emoji-unet-32"), "holds": Holds()}
    for name, net in models.items():
        cond = net.info.condition("food", 1) if name == "bundled" else {}
        size = 32 if name == "bundled" else 8
        seen = []
        for _ in range(3):
            sample(net, (1, 3, size, size), schedule=VP, prediction="eps", steps=2, cond=cond)
            seen += [fingerprint(net), fingerprint(net.forward)]
        assert len(set(seen)) == 2, name  # of the module, and of its method


def test_a_model_that_changes_itself_is_launched_until_it_stays_the_same(on_cuda):
    class Lazy(Net):
        limit = 1

        def forward(self, x, t):
            if getattr(self, "made", 0) < self.limit:
                self.made = getattr(self, "made", 0) + 1
                self.shift = torch.tensor(0.1 * self.made)
            return super().forward(x, t) + self.shift

    once, always = Lazy(), Lazy()
    always.limit = 1000
    for _ in range(4):
        for net in (once, always):
            made = getattr(net, "made", 0)
            ours = sample(net, (2, 3, 8, 8), seed=0, **COMMON)
            net.made = made
            with fastdiff.use("reference"):
                theirs = sample(net, (2, 3, 8, 8), seed=0, **COMMON)
            assert torch.equal(ours, theirs)
    changed = "launches: this run changed the model: an attribute, a part or a hook was replaced"
    assert graphs.explain(once) == [changed, "a CUDA graph"]
    assert graphs.explain(always) == [changed] * 4


def test_an_object_in_the_place_of_one_that_is_gone_is_another():
    """Though it may have its address."""
    net, seen = nn.Module(), set()
    for _ in range(50):
        net.processor = functools.partial(torch.mul, other=0.5)
        seen.add(fingerprint(net))
        del net.processor
    assert len(seen) == 50


def test_thresholds_and_given_noise(on_cuda):
    net = Net()
    for _ in range(3):
        for options in (
            dict(threshold=0.5),
            dict(solver="ddpm", noise=torch.randn(6, 2, 3, 8, 8)),
            dict(solver="ddpm"),
        ):
            ours, theirs = both(net, (2, 3, 8, 8), seed=1, **{**COMMON, **options})
            assert torch.equal(ours, theirs)


def test_callbacks_see_the_states(on_cuda):
    seen = {}
    for backend in ("auto", "reference"):
        with fastdiff.use(backend):
            states = seen[backend] = []
            sample(Net(), (2, 3, 8, 8), seed=1, callback=lambda i, x, to=states: to.append(x.clone()), **COMMON)
    assert len(seen["auto"]) == 6
    assert all(torch.equal(a, b) for a, b in zip(seen["auto"], seen["reference"]))


def test_a_break_down_is_named(on_cuda):
    class Bad(Net):
        def forward(self, x, t):
            return torch.where(t[:, None, None, None] < self.limit, math.nan, super().forward(x, t))

    net = Bad()
    net.register_buffer("limit", torch.tensor(-1.0))
    for _ in range(3):
        sample(net, (2, 3, 8, 8), seed=0, solver="ddim", **COMMON)
    assert graphs.explain(net) == ["a CUDA graph"]
    net.limit.fill_(600)
    with pytest.raises(SamplingError, match=r"ddim, step 4 of 6 .*is NaN or infinite"):
        sample(net, (2, 3, 8, 8), seed=0, solver="ddim", **COMMON)
    net.limit.fill_(-1)
    ours, theirs = both(net, (2, 3, 8, 8), seed=0, solver="ddim", **COMMON)
    assert torch.equal(ours, theirs)
    with pytest.raises(SamplingError, match="initial state"):
        sample(net, torch.full((2, 3, 8, 8), math.nan), solver="ddim", **COMMON)


def test_a_model_that_cannot_be_captured_is_launched_and_that_is_said(on_cuda, monkeypatch):
    class Refuses(Tape):
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
    """As much of torch.cuda as a capture touches. A broken capture ends with an exception, and the stream and the
    generator stay as they were during it, as with torch's."""

    def __init__(self, monkeypatch):
        self.stream, self.generator_is_captured, self.broken = "main", False, False
        for name in ("CUDAGraph", "graph", "Stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.stream)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "stream", stream))
        monkeypatch.setattr(graphs.CudaGraph, "_captured", weakref.WeakSet())
        monkeypatch.setattr(graphs.CudaGraph, "_streams", {})

    class CUDAGraph:
        def pool(self):
            return self.memory

    class Stream:
        pass

    @contextlib.contextmanager
    def graph(self, graph, pool=None, stream=None):
        before, self.stream, self.generator_is_captured = self.stream, stream, True
        graph.memory, graph.stream = pool or object(), stream
        try:
            yield
        finally:
            if self.broken:
                self.broken = False
                raise RuntimeError("operation failed due to a previous error during capture")
            self.stream, self.generator_is_captured = before, False


def test_a_capture_that_fails_leaves_nothing_behind(monkeypatch):
    fake = FakeCuda(monkeypatch)
    made = []

    def capture(device=0):
        made.append(graphs.CudaGraph(torch.device("cuda", device)))
        made[-1].capture(lambda: None)
        return made[-1].graph

    first, second, elsewhere = capture(), capture(), capture(1)
    assert (second.memory, second.stream) == (first.memory, first.stream)
    assert elsewhere.memory is not first.memory
    fake.broken = True
    with pytest.raises(RuntimeError, match="previous error during capture"):
        capture()
    assert fake.stream == "main"
    assert not fake.generator_is_captured
    broken, third, fourth = made[-1].graph, capture(), capture()
    assert third.memory is not broken.memory
    assert third.stream is not broken.stream
    assert (fourth.memory, fourth.stream) == (third.memory, third.stream)


def test_why_a_run_is_not_captured(monkeypatch):
    net, noise = Net(), CounterNoise.of(0, 1)

    def reason(**options):
        return recorded.cannot_capture(Inputs(noise, **options), torch.device("cuda"))

    assert reason() is None
    assert reason(cond={"a": {"b": 1}}) is None
    assert "noise is given" in reason(draw=lambda n: None)
    assert "a classifier's gradient is a function" in reason(gradients={"classifier": lambda x, t: x})
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


def test_why_there_are_no_kernels():
    made, reason = steps.choose(torch.device("cpu"))
    assert made is None
    assert "CUDA devices only" in reason
    if not torch.cuda.is_available():
        assert cuda.unavailable()
        made, reason = steps.choose(torch.device("cuda"))
        assert made is None
        assert cuda.unavailable() in reason


@pytest.mark.skipif(cuda.library() is None, reason="installed without the CUDA kernels")
def test_the_library_loads_without_a_driver():
    assert cuda.step_address()
    assert cuda.build().split(".")[0].isdigit()
    assert cuda.error(100) == "no CUDA-capable device is detected"


def test_the_engine_with_triton_in_the_interpreter():
    interpret("engine", "samples")
