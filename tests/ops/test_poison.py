"""What no kernel writes is NaN in these tests: of kernels that do nothing, all results and gradients are."""

import sys

import pytest

import fastdiff
from fastdiff.bench.cases import of, results, tensors, wanting_gradients
from fastdiff.ops import OPS
from fastdiff.ops.op import Op
from fastdiff.runtime.native import core


class Idle:
    """The compiled module, in which some functions do nothing."""

    def __init__(self, *names):
        self.names = names

    def __getattr__(self, name):
        return (lambda *arguments: None) if name in self.names else getattr(core, name)


@pytest.mark.parametrize("op", [name for name, op in OPS.items() if type(op).kernel is not Op.kernel])
def test_results(op, monkeypatch):
    if op == "linear" and not core.has_linear():
        pytest.skip(f"{core.isa()} has no kernel for linear: torch computes")
    module = sys.modules[OPS[op].__module__]
    monkeypatch.setattr(module, "core", Idle(op))
    if op == "linear_combine":
        monkeypatch.setattr(module, "_KERNELS", dict.fromkeys(module._KERNELS, lambda *arguments: None))
    inputs = of(op, "smallest")[0].make()
    with fastdiff.use("cpu"):
        found = results(OPS[op](**inputs))
    assert all(y.isnan().all() for y in found)


@pytest.mark.parametrize("op", [op for op in OPS if hasattr(core, f"{op}_backward")])
def test_gradients(op, monkeypatch):
    monkeypatch.setattr(sys.modules[OPS[op].__module__], "core", Idle(f"{op}_backward"))
    inputs = wanting_gradients(of(op, "smallest")[0].make())
    with fastdiff.use("cpu"):
        sum(y.sum() for y in results(OPS[op](**inputs))).backward()
    assert all(t.grad.isnan().all() for t in tensors(inputs))


def test_packed_weights(monkeypatch):
    monkeypatch.setattr(sys.modules["fastdiff.ops.conv2d_weights"], "core", Idle("conv2d_weights"))
    inputs = of("conv2d", "smallest")[0].make()
    weight = inputs["weight"]
    form = sys.modules["fastdiff.ops.conv2d_weights"].packed(weight).get(weight, "winograd")
    assert form.isnan().all()
