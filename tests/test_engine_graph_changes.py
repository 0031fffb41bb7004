"""Graphs of a sampling loop: what changes a model is seen, and no graph of before is replayed."""

import functools

import pytest
import torch
from small_network import Net
from tape import COMMON, VP, both
from torch import nn

import fastdiff
from fastdiff import sample
from fastdiff.runtime import graphs
from fastdiff.runtime.fingerprint import fingerprint


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
