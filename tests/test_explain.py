"""What `fastdiff.explain` says of calls that went to PyTorch: every operator, through the public call and optimize."""

import pytest
import torch
from torch import nn

import fastdiff
from fastdiff.runtime import choice


@pytest.fixture(autouse=True)
def _no_notes(monkeypatch):
    monkeypatch.setattr(choice, "_notes", {})


def notes_of(op: str) -> list[str]:
    return [note for note in fastdiff.explain().notes if note.startswith(f"{op}: in PyTorch")]


def test_linear_and_conv2d_are_named():
    x = torch.randn(1, 8, 16, dtype=torch.float64)
    for _ in range(2):
        fastdiff.ops.linear(x, torch.randn(4, 16, dtype=torch.float64))
    fastdiff.ops.conv2d(torch.randn(1, 64, 8, 8), torch.randn(64, 64, 5, 5), padding=2)
    fastdiff.ops.conv2d(torch.randn(1, 3, 8, 8), torch.randn(64, 3, 3, 3))
    (linear,) = notes_of("linear")
    assert "in PyTorch 2 times" in linear
    assert "not torch.float64" in linear
    assert any("not 5x5" in note for note in notes_of("conv2d"))
    assert any("few channels" in note for note in notes_of("conv2d"))


def test_a_gradient_that_torch_computes_faster_is_named():
    x = torch.randn(1, 4, 8, requires_grad=True)
    fastdiff.ops.ada_layer_norm(x, torch.randn(1, 1, 8), torch.randn(1, 1, 8))
    assert "a gradient is wanted" in notes_of("ada_layer_norm")[0]


@pytest.mark.parametrize("optimized", [False, True])
def test_weights_that_cannot_be_watched_are_named(optimized):
    """A model made under inference mode keeps nothing of its weights: torch runs its convolutions, and it is said."""
    with torch.inference_mode():
        model = nn.Conv2d(64, 64, 3, padding=1).eval()
        x = torch.randn(1, 64, 16, 16)
        if optimized:
            fastdiff.optimize(model)(x)
        else:
            fastdiff.ops.conv2d(x, model.weight, model.bias)
    assert any("inference tensor" in note for note in notes_of("conv2d"))


def test_what_the_kernels_take_is_not_named():
    fastdiff.ops.conv2d(torch.randn(1, 64, 8, 8), torch.randn(64, 64, 3, 3))
    with fastdiff.use("reference"):
        fastdiff.ops.conv2d(torch.randn(1, 64, 8, 8), torch.randn(64, 64, 5, 5))
    assert notes_of("conv2d") == []


def test_a_plain_module_is_not_optimized():
    assert str(fastdiff.explain(nn.Linear(2, 2))) == "it is not optimized: fastdiff.optimize(model) does that"
    model = fastdiff.optimize(nn.Linear(2, 2).eval())
    assert "nothing was captured yet" in str(fastdiff.explain(model))
    assert "it is not optimized" in str(fastdiff.explain(fastdiff.restore(model)))


def lines_beside(model):
    return [line.strip() for line in str(fastdiff.explain(model)).splitlines() if "beside graph" in line]


def test_graphs_of_one_shape_say_what_differs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x, scale=1.0, names=True):
            y = self.layer(x)
            return y * scale if names else (y,)

    model, x = fastdiff.optimize(Net().eval()), torch.randn(2, 3, 8)
    with torch.no_grad():
        model(x)
        assert lines_beside(model) == []
        model.double()
        model(x.double())
        model.float()
        model.layer.weight = nn.Parameter(torch.randn(8, 8))  # the bias stays
        for names in (True, False):
            model(x, names=names)
    assert lines_beside(model) == [
        "beside graph 0, of the same shapes: arguments of float64, not float32; weights of float64, not float32",
        "beside graph 0, of the same shapes: other parameters: weights were replaced, or adapters added or removed",
        "beside graph 2, of the same shapes: arguments that are no tensors, names of arguments, settings of PyTorch, "
        "or a change to the model",
    ]
