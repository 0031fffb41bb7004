"""Calls of an operator: past the dispatcher where it would only call the kernel, through it wherever it does more."""

import threading

import pytest
import torch
from conftest import assert_no_worse, floor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff
from fastdiff.bench.cases.ada_layer_norm import make
from fastdiff.ops import ada_layer_norm, linear_combine
from fastdiff.runtime.dispatcher import is_trivial


class Subclass(torch.Tensor):
    pass


@pytest.fixture
def tensors():
    return tuple(make((2, 3, 8)).values())[:3]


def agrees(ours, *inputs, function=ada_layer_norm.plain):
    """As exact as PyTorch's, where the function of the inputs is what was computed."""
    exact = function(*(t.double() for t in inputs))
    assert_no_worse(ours, function(*inputs), exact, floor=floor(exact, torch.float32, terms=8))


def test_ordinary_tensors_need_no_dispatch(tensors):
    x, scale, shift = tensors
    assert is_trivial((x, None, scale))
    parameter = torch.nn.Parameter(scale)
    assert not is_trivial((x, parameter))
    with torch.no_grad():
        assert is_trivial((x, parameter))
        assert not ada_layer_norm(x, parameter, shift).requires_grad
    assert ada_layer_norm(x, parameter, shift).requires_grad
    with torch.inference_mode():
        assert is_trivial((x, parameter, torch.ones(2)))
        assert ada_layer_norm(x, parameter, shift).is_inference()
    with torch.autocast("cpu"):
        assert is_trivial((x, scale))


@pytest.mark.parametrize(("backend", "direct"), [("auto", True), ("cpu", True), ("reference", False)])
def test_the_short_way_is_taken_where_the_kernel_would_run(tensors, backend, direct, monkeypatch):
    """Straight to the kernel: neither through torch's dispatcher nor through a recording of gradients."""
    ways = []

    def seen(name):
        original = getattr(ada_layer_norm, name)
        monkeypatch.setattr(ada_layer_norm, name, lambda *a: (ways.append(name), original(*a))[1])

    for name in ("kernel", "_operator", "_recorded"):
        seen(name)
    x, scale, shift = tensors
    with fastdiff.use(backend):
        ada_layer_norm(x, scale, shift)
        assert ways == ["kernel"] * direct
        ways.clear()
        if backend != "cpu":
            ada_layer_norm(*(t.double() for t in tensors))
            assert ways == []
        scale.requires_grad_()
        with torch.no_grad():
            ada_layer_norm(x, scale, shift)
        assert ways == ["kernel"] * direct
        ways.clear()
        ada_layer_norm(x, scale, shift)  # with so few numbers torch computes unless the kernel is insisted on
        assert ways == (["_recorded", "kernel"] if backend == "cpu" else [])


def test_fake_tensors(tensors):
    with FakeTensorMode() as mode:
        x, scale, shift = (mode.from_tensor(t) for t in tensors)
        assert not is_trivial((x,))
        assert isinstance(ada_layer_norm(x, scale, shift), FakeTensor)
    assert isinstance(ada_layer_norm(x, scale, shift), FakeTensor)  # the mode is left, the tensors are still fake


def test_dispatch_modes_see_the_operator(tensors):
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        agrees(ada_layer_norm(*tensors), *tensors)
    assert torch.ops.fastdiff.ada_layer_norm.default in seen


def test_the_profiler_sees_the_operator(tensors):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ada_layer_norm(*tensors)
    assert "fastdiff::ada_layer_norm" in {event.key for event in profile.key_averages()}


def test_subclasses_stay_subclasses(tensors):
    x, scale, shift = tensors
    assert not is_trivial([x.as_subclass(Subclass)])
    assert type(ada_layer_norm(x, scale.as_subclass(Subclass), shift)) is Subclass
    (y,) = linear_combine([[1.0, 1.0]], [x, x.as_subclass(Subclass)])
    assert type(y) is Subclass


def test_transforms_of_torch_func_go_through_the_reference(tensors):
    x, scale, shift = (torch.stack((t, 2 * t)) for t in tensors)
    mapped = torch.func.vmap(ada_layer_norm)(x, scale, shift)
    for i in range(2):
        agrees(mapped[i], x[i], scale[i], shift[i])
    for transform in (torch.func.grad, torch.func.jacfwd):

        def transformed(*inputs, f=ada_layer_norm.plain, transform=transform):
            return transform(lambda x: f(x, *inputs[1:]).square().sum())(inputs[0])

        agrees(transformed(*tensors, f=ada_layer_norm), *tensors, function=transformed)
    with fastdiff.use("cpu"), pytest.raises(NotImplementedError, match=r"torch\.func"):
        torch.func.vmap(ada_layer_norm)(x, scale, shift)


def test_tensors_whose_memory_is_not_their_value(tensors):
    """Negative views and tensors of zeros without memory: torch makes ordinary ones of them before the kernel."""
    x, scale, shift = tensors
    agrees(ada_layer_norm(torch._neg_view(x), scale, shift), -x, scale, shift)
    zeros = torch._efficientzerotensor(scale.shape)
    agrees(ada_layer_norm(x, zeros, shift), x, torch.zeros_like(scale), shift)


def test_another_default_device(tensors):
    with torch.device("meta"):
        assert not is_trivial(tensors)
        y = ada_layer_norm(*tensors)
        assert y.device.type == "cpu"
        agrees(y, *tensors)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_traces(tensors):
    traced = torch.jit.trace(lambda x: ada_layer_norm(x, *tensors[1:]), tensors[0])
    assert "fastdiff::ada_layer_norm" in str(traced.graph)
    agrees(traced(2 * tensors[0]), 2 * tensors[0], *tensors[1:])


def test_exports(tensors):
    class Model(torch.nn.Module):
        def forward(self, x, scale, shift):
            return ada_layer_norm(x, scale, shift)

    for strict in (True, False):
        program = torch.export.export(Model(), tensors, strict=strict)
        assert "fastdiff.ada_layer_norm.default" in str(program.graph)


def test_compiled_code_without_gradients(tensors):
    compiled = torch.compile(lambda *t: ada_layer_norm(*t) + 1, backend="aot_eager", fullgraph=True, dynamic=True)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert torch.equal(compiled(*tensors), ada_layer_norm(*tensors) + 1)


def test_every_thread_has_the_same_keys(tensors):
    """A new thread starts without the modes of the one that made it."""
    found = []
    with torch.device("meta"):
        thread = threading.Thread(target=lambda: found.append(is_trivial(tensors)))
        thread.start()
        thread.join()
    assert found == [True]
