"""1x1 convolutions by linear's kernel: as exact as torch's, and only where it can take them."""

import pytest
import torch
from conftest import assert_no_worse

import fastdiff
from fastdiff.ops import linear
from fastdiff.ops.conv2d import Arguments, conv2d, is_pointwise
from fastdiff.runtime.native import core

reference = conv2d.plain.positional

EPS = torch.finfo(torch.float32).eps


def pointwise(*values):
    """By linear's kernel, where conv2d takes that."""
    a = Arguments(*values)
    return conv2d.run(a) if is_pointwise(a) and conv2d.takes(a) == "cpu" else None


@pytest.fixture(autouse=True)
def matrix_units():
    if not core.has_linear():
        pytest.skip(f"{core.isa()} has no kernel for linear: torch computes")


def make(shape, out_channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(out_channels, shape[1], 1, 1, generator=generator) / shape[1] ** 0.5
    residual = torch.randn(shape[0], out_channels, *shape[2:], generator=generator)
    return (
        x,
        weight,
        torch.randn(out_channels, generator=generator),
        residual.contiguous(memory_format=torch.channels_last),
    )


@pytest.mark.parametrize(
    ("shape", "out_channels"), [((2, 320, 32, 16), 320), ((1, 130, 56, 57), 257), ((3, 64, 48, 48), 256)]
)
@pytest.mark.parametrize("after", ["nothing", "residual", "silu"])
@pytest.mark.parametrize("bias", [True, False])
def test_no_worse_than_torch(shape, out_channels, after, bias):
    x, weight, b, residual = make(shape, out_channels)
    arguments = [x, None, weight, b if bias else None, 1, 0, None, None, None, 1, 1.0]
    arguments[6], arguments[8] = residual if after == "residual" else None, "silu" if after == "silu" else None
    ours = pointwise(*arguments)
    oracle = reference(*(t.double() if isinstance(t, torch.Tensor) else t for t in arguments))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    reduction = torch.tensor(float(shape[1])).log2().item()
    assert_no_worse(ours, reference(*arguments), oracle, floor=float(oracle.abs().max()) * EPS * (1 + reduction))
    asked = conv2d(x, weight, arguments[3], padding=0, residual=arguments[6], activation=arguments[8])
    assert torch.equal(asked, ours)


def test_what_goes_to_torch():
    x, weight, bias, residual = make((2, 128, 40, 41), 256)
    taken = [x, None, weight, bias, 1, 0, None, None, None, 1, 1.0]
    assert pointwise(*taken) is not None
    changes = {
        "stride": {4: 2},
        "padding": {5: 1},
        "activation after the residual": {6: residual, 8: "silu"},
        "embedding": {7: torch.randn(2, 256)},
        "upsampled": {9: 2},
        "scaled": {10: 0.5},
        "two images": {1: x},
        "channels first": {0: x.contiguous()},
        "residual with channels first": {6: residual.contiguous()},
        "few outputs": {2: weight[:32], 3: bias[:32]},
        "few pixels": {0: x[:1, :, :32]},
        "a gradient": {2: weight.clone().requires_grad_()},
        "float64": {0: x.double(), 2: weight.double(), 3: bias.double()},
    }
    for name, change in changes.items():
        assert pointwise(*(change.get(index, value) for index, value in enumerate(taken))) is None, name
    with fastdiff.use("reference"):
        assert pointwise(*taken) is None
    with fastdiff.use("cpu"):  # insisted on, slower or not
        assert pointwise(*taken[:2], weight[:32], bias[:32], *taken[4:]) is not None


def test_no_samples():
    x, weight, bias, _ = make((0, 64, 8, 8), 256)
    with fastdiff.use("cpu"):
        y = conv2d(x, weight, bias, padding=0)
    assert y.shape == (0, 256, 8, 8)


def test_a_captured_model_uses_it(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Conv2d(64, 256, 3, padding=1), torch.nn.Conv2d(256, 256, 1)).eval()
    x = torch.randn(2, 64, 32, 32)
    calls = []
    original = linear.kernel
    monkeypatch.setattr(linear, "kernel", lambda a: calls.append(a.x.shape) or original(a))
    with torch.no_grad():
        expected = model(x)
        fast = fastdiff.optimize(model)
        torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)
    assert calls == [(2, 1024, 256)]
