"""Gradients of conv2d by its own kernel: of images by the kernel turned round, of the weight by PyTorch."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from operators import check_gradients, gradients, run_conv2d, slower
from torch import nn

import fastdiff
from fastdiff.bench.cases import wide
from fastdiff.bench.cases.conv2d import make
from fastdiff.models.parts.blocks import Conv2d
from fastdiff.ops import conv2d
from fastdiff.ops.conv2d_weights import packed

CL = torch.channels_last


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def result_of(inputs):
    return conv2d.plain(**inputs)


def turned(inputs, cotangent):
    """The convolution that is the gradient of x: each kernel turned by half a circle, channels in place of channels."""
    weight = inputs["weight"].flip(2, 3).transpose(0, 1)
    gradient = inputs.get("scale", 1) * cotangent.contiguous(memory_format=CL)
    return dict(x=gradient, weight=weight, padding=2 - inputs.get("padding", 1))


def check(inputs, cotangent):
    """The gradient of x is to the bit what the kernel gives for the turned convolution, which other tests hold to
    float64; that convolution in float64 is the gradient. All others as `check_gradients`."""
    check_gradients(conv2d, inputs, cotangent, terms=cotangent[:, :1].numel(), without=["x"])

    def summed(y):  # an enlarged image has each pixel four times
        return y if inputs.get("upsample", 1) == 1 else F.avg_pool2d(y, 2, divisor_override=1)

    def of_x(operator, given, cotangent):
        found = gradients(operator, given, [cotangent], [name for name in given if name != "x"])
        return torch.cat([*found.values()], 1)

    with fastdiff.use("cpu"):
        ours = of_x(conv2d, inputs, cotangent)
    assert torch.equal(ours, summed(run_conv2d(**turned(inputs, cotangent))))
    exact = of_x(conv2d.plain, wide(inputs), cotangent.double())
    other = summed(conv2d.plain(**turned(wide(inputs), cotangent.double())))
    torch.testing.assert_close(other, exact, rtol=1e-12, atol=1e-12 * float(cotangent.abs().sum() + 1))


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize(
    ("shape", "out_channels"),
    [((2, 64, 16, 16), 64), ((1, 320, 9, 7), 96), ((3, 20, 5, 6), 4), ((1, 47, 3, 3), 33), ((0, 8, 4, 4), 8)],
)
def test_shapes(shape, out_channels, padding):
    inputs = make(shape, out_channels) | {"padding": padding}
    assert conv2d.undifferentiated(conv2d.arguments(**inputs)) is None
    check(inputs, torch.randn_like(result_of(inputs)))


@pytest.mark.parametrize("channels_last", [False, True])
def test_all_that_is_added(channels_last):
    inputs = make((2, 64, 6, 5), 32, residual=True) | {"channel_bias": torch.randn(2, 32), "scale": 0.7}
    inputs["x"] = [inputs["x"], torch.randn(2, 32, 6, 5)]
    inputs["weight"] = torch.randn(32, 96, 3, 3) / 30
    if channels_last:
        inputs["x"] = [x.to(memory_format=CL) for x in inputs["x"]]
        inputs["residual"] = inputs["residual"].to(memory_format=CL)
    check(inputs, torch.randn(2, 32, 6, 5))


@pytest.mark.parametrize("padding", [0, 1])
def test_an_enlarged_image(padding):
    inputs = make((2, 64, 7, 5), 32) | {"upsample": 2, "padding": padding}
    check(inputs, torch.randn_like(result_of(inputs)))


def test_gradients_that_differ_in_size():
    """One pixel of the gradient is 1e5 times the others."""
    cotangent = torch.randn(1, 64, 16, 16)
    cotangent[:, :, 8, 8] *= 1e5
    check(make((1, 64, 16, 16), 64), cotangent)


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "residual", "channel_bias"])
def test_one_alone(wanted):
    inputs = make((2, 64, 6, 5), 64, residual=True) | {"channel_bias": torch.randn(2, 64)}
    cotangent, without = torch.randn(2, 64, 6, 5), [name for name in inputs if name != wanted]
    with fastdiff.use("cpu"):
        ours = gradients(conv2d, inputs, [cotangent], without)
    assert list(ours) == [wanted]
    torch.testing.assert_close(ours, gradients(conv2d.plain, inputs, [cotangent], without), rtol=1e-5, atol=2e-5)


def test_what_is_not_wanted_is_not_computed(monkeypatch):
    inputs = make((1, 64, 6, 5), 64)
    asked = []
    monkeypatch.setattr(
        type(conv2d), "_gradients_of_images", lambda self, a, gradient: asked.append(a) or (a.x, a.skip)
    )
    gradients(conv2d, inputs, [torch.randn(1, 64, 6, 5)], ["x"])
    assert not asked
    gradients(conv2d, inputs, [torch.randn(1, 64, 6, 5)], ["weight"])
    assert len(asked) == 1


def test_a_weight_that_is_trained():
    """Each step has the gradients of the weight as it is then."""
    x, weight, *_ = make((2, 64, 8, 8), 64).values()
    ours, theirs = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    for operator, leaf in ((conv2d, ours), (conv2d.plain, theirs)):
        optimizer, image = torch.optim.SGD([leaf], 0.5), x.clone().requires_grad_()
        for _ in range(3):
            optimizer.zero_grad()
            operator(image, leaf).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_steps_leave_nothing_behind():
    """What was made of a weight goes when a step changes it."""
    x, weight, *_ = make((1, 64, 8, 8), 64).values()
    layer = nn.Parameter(weight)
    optimizer, made = torch.optim.SGD([layer], 0.1), []
    for _ in range(4):
        optimizer.zero_grad()
        conv2d(x, layer).sum().backward()
        made.append(weakref.ref(packed(layer)))
        optimizer.step()
    conv2d(x, layer).sum().backward()
    gc.collect()
    assert [each() for each in made] == [None] * 4


def test_a_weight_out_of_range():
    inputs = make((1, 64, 6, 5), 64)
    inputs["weight"] = inputs["weight"] * 2.0**60
    assert not packed(inputs["weight"]).in_range(inputs["weight"])
    cotangent = torch.randn(1, 64, 6, 5)
    with fastdiff.use("cpu"):
        ours = gradients(conv2d, inputs, [cotangent])["x"]
    assert ours.isfinite().all()
    assert torch.equal(ours, conv2d.plain(**turned(inputs, cotangent)))


def test_gradients_of_gradients():
    x, weight, *_ = make((1, 64, 6, 5), 64).values()
    found = []
    for operator in (conv2d, conv2d.plain):
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        (first,) = torch.autograd.grad(operator(*leaves).square().sum(), leaves[0], create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), leaves))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-3)


def test_opcheck():
    x, weight, bias, *_ = make((1, 16, 6, 5), 32).values()
    backward = torch.ops.fastdiff.conv2d_backward
    gradient = torch.randn(1, 32, 12, 10)
    torch.library.opcheck(backward, (gradient, x, None, weight, bias, 1, 1, None, None, None, 2, 1.0, None))
    with pytest.raises(ValueError, match="gradient is"):
        backward(gradient, x, None, weight, bias, 1, 1, None, None, None, 1, 1.0, None)
    with pytest.raises(ValueError, match="silu"):
        backward(gradient, x, None, weight, bias, 1, 1, None, None, "silu", 2, 1.0, None)


def test_who_computes():
    x, weight, *_ = make((1, 64, 8, 8), 64).values()
    x.requires_grad_()
    assert slower(conv2d, x, weight) is None
    assert "what silu is of" in slower(conv2d, x, weight, activation="silu")
    assert "few channels" in slower(conv2d, x, weight[:32])
    pointwise = conv2d.arguments(x.to(memory_format=CL), torch.randn(64, 64, 1, 1), padding=0)
    assert "linear layer of pixels" in conv2d.slower_backward(pointwise)


@pytest.mark.parametrize(
    ("image", "kernel"), [(CL, CL), (CL, torch.contiguous_format), (torch.contiguous_format, CL)], ids=str
)
def test_a_layer_of_the_models(image, kernel, monkeypatch):
    """Gradients by the operator, without a gradient PyTorch's; in both cases in PyTorch's strides."""
    layer = Conv2d(64, 64, 3, padding=1).to(memory_format=kernel)
    same = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=kernel)
    same.load_state_dict(layer.state_dict())
    x = torch.randn(2, 64, 8, 8).to(memory_format=image)
    asked = []
    run = type(conv2d).run
    monkeypatch.setattr(type(conv2d), "run", lambda self, a, **options: asked.append(a) or run(self, a, **options))
    y, expected = layer(x), same(x)
    assert len(asked) == 1
    assert y.stride() == expected.stride()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, same.weight.grad, rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        assert torch.equal(layer(x), same(x))
    assert len(asked) == 1


@pytest.mark.parametrize(
    "other",
    [
        lambda: (Conv2d(64, 64, 3, padding=1), torch.randn(1, 64, 8, 8)),  # contiguous, as its result would not be
        lambda: (Conv2d(64, 64, 3, padding=1).double(), torch.randn(1, 64, 8, 8).double()),
        lambda: (Conv2d(64, 64, 3, padding=1, groups=2), torch.randn(1, 64, 8, 8)),
        lambda: (Conv2d(64, 64, 3, padding=1, padding_mode="circular"), torch.randn(1, 64, 8, 8)),
        lambda: (Conv2d(64, 64, 3, padding=1, stride=2), torch.randn(1, 64, 8, 8)),
        lambda: (Conv2d(64, 64, 3, padding=2, dilation=2), torch.randn(1, 64, 8, 8)),
        lambda: (Conv2d(64, 64, 3, padding="same"), torch.randn(1, 64, 8, 8)),
        lambda: (Conv2d(64, 64, 1), torch.randn(1, 64, 8, 8)),
        lambda: (Conv2d(64, 64, 3, padding=1), torch.randn(64, 8, 8)),
        lambda: (Conv2d(64, 64, 3, padding=1).requires_grad_(False), torch.randn(1, 64, 8, 8)),
    ],
)
def test_other_layers_are_pytorchs(other):
    layer, x = other()
    if x.ndim == 4 and layer.groups == 1 and layer.padding_mode != "zeros":
        layer, x = layer.to(memory_format=CL), x.to(memory_format=CL)
    assert torch.equal(layer(x), nn.Conv2d.forward(layer, x))


def test_layers_under_autocast():
    layer = Conv2d(64, 64, 3, padding=1).to(memory_format=CL)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(1, 64, 8, 8)).dtype == torch.bfloat16
