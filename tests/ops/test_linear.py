"""linear against float64: every instruction set that has a kernel, odd sizes, views, what follows the product."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_no_worse

import fastdiff
from fastdiff.ops.linear import ACTIVATIONS, Arguments, linear
from fastdiff.runtime.dispatcher import wants_gradient
from fastdiff.runtime.native import core

reference = linear.plain.positional


def supports(*values, **named):
    return linear.unsupported(Arguments(*values, **named))


def faster_in_torch(*values, **named):
    a = Arguments(*values, **named)
    return linear.slower(a) or (linear.slower_backward(a) if wants_gradient(a) else None)


# (B, S, K, N): of DiT and Stable Diffusion, of nothing in particular, less than a tile, and empty ones.
SIZES = [
    (2, 256, 1152, 192),
    (1, 154, 768, 320),
    (3, 33, 100, 70),
    (1, 1, 1, 1),
    (2, 5, 31, 33),
    (1, 31, 33, 15),
    (1, 40, 1600, 17),
    (1, 700, 100, 70),
    (2, 300, 1600, 40),
]


@pytest.fixture
def kernel(isa):
    if not core.has_linear():
        pytest.skip(f"{isa} has no kernel for linear: torch computes")


def make(size, seed=0, std=1.0):
    generator = torch.Generator().manual_seed(seed)
    batch, rows, inputs, outputs = size
    x, weight = (
        std * torch.randn(batch, rows, inputs, generator=generator),
        torch.randn(outputs, inputs, generator=generator),
    )
    return x, weight / inputs**0.5, torch.randn(outputs, generator=generator)


def check(x, weight, bias=None, **options):
    """At most twice the error of torch in float32; the floor is the rounding of the result."""
    with fastdiff.use("cpu"):
        ours = linear(x, weight, bias, **options)
    wide = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    if not isinstance(weight, torch.Tensor):
        weight, bias = torch.cat(weight), torch.cat(bias)
    oracle = reference(x.double(), weight.double(), None if bias is None else bias.double(), **wide)
    assert ours.is_contiguous()
    floor = torch.finfo(torch.float32).eps * oracle.abs().max().item()
    assert_no_worse(ours, reference(x, weight, bias, **options), oracle, floor=floor)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size):
    x, weight, bias = make(size)
    check(x, weight)
    check(x, weight, bias)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("per_row", [False, True])
def test_what_follows_the_product(activation, per_row):
    x, weight, bias = make((2, 37, 96, 50))
    table = torch.randn(2, 37 if per_row else 1, 6 * 50)
    check(x, weight, bias, activation=activation)
    check(x, weight, bias, activation=activation, gate=table.chunk(6, dim=-1)[2])
    check(x, weight, bias, activation=activation, gate=table.chunk(6, dim=-1)[2], residual=torch.randn(2, 37, 50))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("size", [(2, 37, 96, 50), (3, 100, 70, 22), (1, 40, 1600, 98), (1, 300, 900, 34)], ids=str)
def test_glu(size):
    """Few rows and many, one panel of numbers and more, and halves that end within a tile."""
    x, weight, bias = make(size)
    for activation in ACTIVATIONS:
        check(x, weight, bias, activation=activation, glu=True)
    check(x, weight, activation="gelu", glu=True)
    check(x, weight, bias, glu=True, gate=torch.randn(size[0], 1, size[3] // 2))
    check(x, weight, bias, glu=True, activation="silu", residual=torch.randn(size[0], size[1], size[3] // 2))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("outputs", [(64, 64, 64), (16, 48), (20, 33), (32, 7, 9), (16, 16, 16, 5)], ids=str)
def test_several_weights(outputs):
    x, weight, bias = make((2, 70, 80, sum(outputs)))
    with fastdiff.use("cpu"):
        whole, gated = linear(x, weight, bias), linear(x, weight, bias, glu=True) if sum(outputs) % 2 == 0 else None
        weights, biases = weight.split(outputs), bias.split(outputs)
        assert torch.equal(linear(x, weights, biases), whole)
        if gated is not None:
            assert torch.equal(linear(x, weights, biases, glu=True), gated)
        assert torch.equal(linear(x, weights), linear(x, weight))
        some = [biases[0], *[None] * (len(outputs) - 1)]
        assert torch.equal(linear(x, weights, some)[..., : outputs[0]], whole[..., : outputs[0]])
    check(x, weights, biases)


def test_gelu_far_from_zero():
    """Of a weight of one number the result is the activation itself."""
    x = torch.cat([torch.linspace(-20, 20, 3001), torch.tensor([-1e30, 1e30, 0.0])])[None, :, None]
    with fastdiff.use("cpu" if core.has_linear() else "reference"):
        ours = linear(x, torch.ones(1, 1), activation="gelu")
    assert_no_worse(ours, F.gelu(x), F.gelu(x.double()), floor=torch.finfo(torch.float32).eps * 20)


@pytest.mark.usefixtures("kernel")
def test_views():
    x, weight, bias = make((2, 24, 80, 48))
    check(x.transpose(0, 1).contiguous().transpose(0, 1), weight, bias)
    check(torch.randn(2, 24, 160)[..., ::2], weight, bias)
    check(x, torch.randn(48, 100)[:, 10:90], bias)
    check(x, weight.T.contiguous().T, torch.randn(96)[::2])
    check(x, weight, bias, residual=torch.randn(2, 48, 24).transpose(1, 2))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("std", [1e-20, 1e-4, 1e4, 1e18])
def test_large_and_small_numbers(std):
    check(*make((1, 40, 200, 40), std=std))


@pytest.mark.usefixtures("kernel")
def test_one_large_number_among_small_ones():
    x, weight, bias = make((1, 64, 256, 64))
    x[:, :, 7] *= 1e4
    check(x, weight, bias)


@pytest.mark.usefixtures("kernel")
def test_the_thread_count_does_not_change_the_result():
    x, weight, bias = make((2, 100, 128, 300))
    before = torch.get_num_threads()
    found = []
    try:
        with fastdiff.use("cpu"):
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                found.append(linear(x, weight, bias, activation="silu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.usefixtures("kernel")
def test_empty_ones():
    with fastdiff.use("cpu"):
        assert linear(torch.randn(0, 4, 8), torch.randn(5, 8)).shape == (0, 4, 5)
        assert linear(torch.randn(2, 4, 8), torch.randn(0, 8)).shape == (2, 4, 0)
        assert torch.equal(linear(torch.randn(2, 4, 0), torch.randn(5, 0), torch.ones(5)), torch.ones(2, 4, 5))


@pytest.mark.usefixtures("kernel")
def test_a_changed_weight_is_seen():
    x, weight, bias = make((1, 128, 64, 64))
    with fastdiff.use("cpu"):
        before = linear(x, weight, bias)
        weight.mul_(2)
        after = linear(x, weight, bias)
    assert not torch.equal(before, after)
    check(x, weight, bias)


@pytest.mark.usefixtures("kernel")
def test_gradients():
    x, weight, bias = (t.requires_grad_() for t in make((2, 20, 40, 30)))
    gate, residual = torch.randn(2, 1, 30, requires_grad=True), torch.randn(2, 20, 30, requires_grad=True)
    inputs = (x, weight, bias, gate, residual)
    direction = torch.randn(2, 20, 30)
    theirs = torch.autograd.grad(reference(*inputs, "gelu_tanh"), inputs, direction)
    with fastdiff.use("cpu"):
        y = linear(x, weight, bias, activation="gelu_tanh", gate=gate, residual=residual)
    for ours, wanted in zip(torch.autograd.grad(y, inputs, direction), theirs):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)

    halves = (*weight.split(15), *bias.split(15))
    theirs = torch.autograd.grad((reference(x, weight, bias) * direction).sum(), (x, weight, bias))
    with fastdiff.use("cpu"):
        y = linear(x, halves[:2], halves[2:])
    for ours, wanted in zip(torch.autograd.grad(y, (x, weight, bias), direction), theirs):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


def test_opcheck():
    x, weight, bias = make((2, 20, 40, 30))
    gate, residual = torch.randn(2, 1, 30), torch.randn(2, 20, 30)
    for arguments in (
        (x, weight, None, None, None, "none"),
        (x, weight, bias, gate, residual, "silu"),
        (x, weight, bias, None, None, "gelu", True, weight, bias),
    ):
        torch.library.opcheck(torch.ops.fastdiff.linear.default, arguments)


def test_reasons(isa):
    x, weight, bias = make((1, 128, 64, 512))
    half = (x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    assert "float32" in supports(*half)
    assert torch.equal(linear(*half), reference(*half))
    if not core.has_linear():
        assert isa in supports(x, weight, bias)
        assert torch.equal(linear(x, weight, bias), reference(x, weight, bias))
        with fastdiff.use("cpu"), pytest.raises(NotImplementedError, match="AMX"):
            linear(x, weight, bias)
        return
    assert supports(x, weight, bias) is None
    assert faster_in_torch(x, weight, bias) is None
    assert "rows" in faster_in_torch(x[:, :8], weight, bias)
    assert "outputs" in faster_in_torch(x, weight[:240], bias[:240])
    assert "gradient" in faster_in_torch(x, weight.requires_grad_(), bias)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.randn(4, 8)}, ValueError, r"\(B, S, K\)"),
        ({"weight": torch.randn(5, 9)}, ValueError, r"\(5, 9\)"),
        ({"bias": torch.randn(4)}, ValueError, "bias"),
        ({"bias": torch.randn(5).double()}, TypeError, "bias"),
        ({"gate": torch.randn(2, 3, 5)}, ValueError, "gate"),
        ({"residual": torch.randn(2, 4, 6)}, ValueError, "residual"),
        ({"activation": "relu"}, ValueError, "relu"),
        ({"glu": True}, ValueError, "even number"),
        ({"weight": [torch.randn(5, 8), torch.randn(5, 7)]}, ValueError, "weight"),
        ({"weight": []}, ValueError, "got none"),
        ({"weight": [torch.randn(5, 8)] * 2, "bias": [None]}, ValueError, "as many"),
    ],
)
def test_bad_input(change, error, words):
    arguments = {"x": torch.randn(2, 4, 8), "weight": torch.randn(5, 8), **change}
    with pytest.raises(error, match=words):
        linear(**arguments)
