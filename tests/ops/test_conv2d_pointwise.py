"""1x1 convolutions by linear's kernel: as exact as torch's, and only where it can take them."""

import copy
import math

import pytest
import torch
from conftest import assert_no_worse, floor
from operators import needs_matrix_units

import fastdiff
from fastdiff.bench.cases import wide
from fastdiff.bench.cases.conv2d import make
from fastdiff.ops import conv2d, linear
from fastdiff.ops.conv2d import is_pointwise

needs_matrix_units()
pytestmark = pytest.mark.usefixtures("matrix_units")


def pointwise(**inputs):
    """By linear's kernel, where conv2d takes that."""
    a = conv2d.arguments(**inputs)
    return conv2d.run(a) if is_pointwise(a) and conv2d.takes(a) == "cpu" else None


@pytest.mark.parametrize(
    ("shape", "out_channels"), [((2, 320, 32, 16), 320), ((1, 130, 56, 57), 257), ((3, 64, 48, 48), 256)]
)
@pytest.mark.parametrize("after", ["nothing", "residual", "silu"])
@pytest.mark.parametrize("bias", [True, False])
def test_no_worse_than_torch(shape, out_channels, after, bias):
    inputs = make(shape, out_channels, kernel=1, residual=after == "residual")
    inputs |= {"activation": "silu" if after == "silu" else None} | ({} if bias else {"bias": None})
    ours, oracle = pointwise(**inputs), conv2d.plain(**wide(inputs))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert_no_worse(ours, conv2d.plain(**inputs), oracle, floor=floor(oracle, torch.float32, shape[1]))
    assert torch.equal(conv2d(**inputs), ours)


def test_what_goes_to_torch():
    taken = make((2, 128, 40, 41), 256, kernel=1)
    residual = make((2, 128, 40, 41), 256, kernel=1, residual=True)["residual"]
    x, weight, bias, *_ = taken.values()
    assert pointwise(**taken) is not None
    changes = {
        "stride": dict(stride=2),
        "padding": dict(padding=1),
        "activation after the residual": dict(residual=residual, activation="silu"),
        "embedding": dict(channel_bias=torch.randn(2, 256)),
        "upsampled": dict(upsample=2),
        "scaled": dict(scale=0.5),
        "two images": dict(x=[x, x], weight=weight.repeat(1, 2, 1, 1)),
        "channels first": dict(x=x.contiguous()),
        "residual with channels first": dict(residual=residual.contiguous()),
        "few outputs": dict(weight=weight[:32], bias=bias[:32]),
        "few pixels": dict(x=x[:1, :, :32]),
        "a gradient": dict(weight=weight.clone().requires_grad_()),
        "float64": wide(dict(x=x, weight=weight, bias=bias)),
    }
    for name, change in changes.items():
        assert pointwise(**taken | change) is None, name
    with fastdiff.use("reference"):
        assert pointwise(**taken) is None
    with fastdiff.use("cpu"):  # insisted on, slower or not
        assert pointwise(**taken | changes["few outputs"]) is not None


def test_no_samples():
    with fastdiff.use("cpu"):
        y = conv2d(**make((0, 64, 8, 8), 256, kernel=1))
    assert y.shape == (0, 256, 8, 8)


def test_a_captured_model_uses_it(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Conv2d(64, 256, 3, padding=1), torch.nn.Conv2d(256, 256, 1)).eval()
    x = torch.randn(2, 64, 32, 32)
    calls = []
    original = linear.kernel
    monkeypatch.setattr(linear, "kernel", lambda a: calls.append(a.x.shape) or original(a))
    with torch.no_grad():
        theirs, exact = model(x), copy.deepcopy(model).double()(x.double())
        fast = fastdiff.optimize(model)
        assert_no_worse(fast(x), theirs, exact, floor=floor(exact, torch.float32, more=math.log2(9 * 64)))
    assert calls == [(2, 1024, 256)]
