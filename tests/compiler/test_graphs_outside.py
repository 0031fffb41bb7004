"""What a call does outside of its CUDA graph, where tensors are on a GPU: asked with tensors without memory."""

import pytest
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdiff.compiler import effects
from fastdiff.compiler.errors import Unsupported
from fastdiff.compiler.outside import split

FAKE = FakeTensorMode()


def fake(*shape, device="cuda", dtype=torch.float32):
    with FAKE:
        return torch.empty(shape, device=device, dtype=dtype)


class Graph:
    """A graph that is built call by call, with fake results."""

    def __init__(self, **inputs):
        self.graph = fx.Graph()
        for name, value in inputs.items():
            node = self.graph.placeholder(name)
            node.meta["example_value"] = value
            setattr(self, name, node)

    def call(self, target, *args, result, **kwargs):
        make = self.graph.call_method if isinstance(target, str) else self.graph.call_function
        node = make(target, args, kwargs)
        node.meta["example_value"] = result
        return node

    def split(self, output):
        self.graph.output((output,))
        effects.note(self.graph)
        return split(fx.GraphModule(nn.Module(), self.graph), "cuda", kept_inside=True)


def targets(module):
    return [node.target for node in module.graph.nodes if node.op.startswith("call")]


def test_a_time_on_the_cpu_is_moved_outside():
    g = Graph(x=fake(2, 4), t=fake(device="cpu"), L_self_parameters_w=fake(4))
    moved = g.call("to", g.t, "cuda", result=fake())
    y = g.call(torch.add, g.x, moved, result=fake(2, 4))
    z = g.call(torch.mul, y, g.L_self_parameters_w, result=fake(2, 4))
    parts = g.split(z)
    assert targets(parts.outside) == ["to"]
    assert targets(parts.inside) == [torch.add, torch.mul]
    assert (parts.tensors, parts.weights, parts.numbers) == ([0], [2], [])


def test_what_is_computed_of_a_number_is_outside_up_to_the_first_tensor_of_the_gpu():
    g = Graph(x=fake(2, 4), t=fake(device="cpu", dtype=torch.float64))
    number = g.call("item", g.t, result=0.5)
    double = g.call(torch.sym_float, number, result=1.0)
    time = g.call(torch.tensor, [double], device="cuda", result=fake(1))
    wave = g.call(torch.sin, time, result=fake(1))
    parts = g.split(g.call(torch.add, g.x, wave, result=fake(2, 4)))
    assert targets(parts.outside) == ["item", torch.sym_float, torch.tensor]
    assert targets(parts.inside) == [torch.sin, torch.add]


def test_sizes_are_numbers_of_the_signature():
    g = Graph(s0=3, x=fake(3, 4))
    parts = g.split(g.call("view", g.x, g.s0, 4, result=fake(3, 4)))
    assert (parts.outside, parts.numbers, parts.tensors) == (None, [0], [1])


WHY = {
    "the host": (lambda g: g.call(torch.nonzero, g.x2, result=fake(2, 2, dtype=torch.int64)), "reads values"),
    "a copy to the CPU": (
        lambda g: g.call("to", g.x, "cpu", result=fake(2, 4, device="cpu")),
        "is on the CPU, in the middle",
    ),
    "a value": (lambda g: g.call(torch.add, g.call("item", g.x2, result=0.5), 1, result=1.5), "reads values"),
    "random numbers": (lambda g: g.call(torch.rand_like, g.x, result=fake(2, 4)), "draws random numbers"),
    "a tensor of the CPU": (lambda g: g.call(torch.add, g.x, g.c, result=fake(2, 4)), "given on the CPU"),
    "one made on the CPU": (
        lambda g: g.call(torch.add, g.x, g.call(torch.sin, g.c, result=fake(device="cpu")), result=fake(2, 4)),
        "which is on the CPU",
    ),
}


@pytest.mark.parametrize("what", WHY)
def test_what_ends_it(what):
    make, why = WHY[what]
    g = Graph(x=fake(2, 4), c=fake(device="cpu"))
    g.x2 = g.call(torch.sum, g.x, result=fake())
    with pytest.raises(Unsupported, match=why):
        g.split(make(g))
