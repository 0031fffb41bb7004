"""linear against float64: every instruction set that has a kernel, odd sizes, views, what follows the product."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_no_worse, floor
from operators import check_gradients, check_results, check_threads, slower, unsupported

import fastdiff
from fastdiff.bench.cases.linear import make
from fastdiff.ops import linear
from fastdiff.ops.linear import ACTIVATIONS
from fastdiff.runtime.native import core

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


def check(**inputs):
    """The floor is the rounding of the result."""
    (y,) = check_results(linear, inputs)
    assert y.is_contiguous()


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size):
    check(**make(size))
    check(**make(size, bias=False))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("per_row", [False, True])
def test_what_follows_the_product(activation, per_row):
    for follows in ({}, dict(gate=True), dict(residual=True), dict(gate=True, residual=True)):
        check(**make((2, 37, 96, 50), activation=activation, per_row=per_row, **follows))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("size", [(2, 37, 96, 50), (3, 100, 70, 22), (1, 40, 1600, 98), (1, 300, 900, 34)], ids=str)
def test_glu(size):
    """Few rows and many, one panel of numbers and more, and halves that end within a tile."""
    for activation in ACTIVATIONS:
        check(**make(size, activation=activation, glu=True))
    check(**make(size, activation="gelu", glu=True, bias=False))
    check(**make(size, glu=True, gate=True))
    check(**make(size, glu=True, activation="silu", residual=True))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("outputs", [(64, 64, 64), (16, 48), (20, 33), (32, 7, 9), (16, 16, 16, 5)], ids=str)
def test_several_weights(outputs):
    x, weight, bias, *_ = make((2, 70, 80, sum(outputs))).values()
    with fastdiff.use("cpu"):
        whole, gated = linear(x, weight, bias), linear(x, weight, bias, glu=True) if sum(outputs) % 2 == 0 else None
        weights, biases = weight.split(outputs), bias.split(outputs)
        assert torch.equal(linear(x, weights, biases), whole)
        if gated is not None:
            assert torch.equal(linear(x, weights, biases, glu=True), gated)
        assert torch.equal(linear(x, weights), linear(x, weight))
        some = [biases[0], *[None] * (len(outputs) - 1)]
        assert torch.equal(linear(x, weights, some)[..., : outputs[0]], whole[..., : outputs[0]])
    check(x=x, weight=weights, bias=biases)


def test_gelu_far_from_zero():
    """Of a weight of one number the result is the activation itself."""
    x = torch.cat([torch.linspace(-20, 20, 3001), torch.tensor([-1e30, 1e30, 0.0])])[None, :, None]
    with fastdiff.use("cpu" if core.has_linear() else "reference"):
        ours = linear(x, torch.ones(1, 1), activation="gelu")
    assert_no_worse(ours, F.gelu(x), F.gelu(x.double()), floor=floor(x[:, :-3], torch.float32))


@pytest.mark.usefixtures("kernel")
def test_views():
    x, weight, bias, *_ = make((2, 24, 80, 48)).values()
    given = dict(x=x, weight=weight, bias=bias)
    check(**given | dict(x=x.transpose(0, 1).contiguous().transpose(0, 1)))
    check(**given | dict(x=torch.randn(2, 24, 160)[..., ::2]))
    check(**given | dict(weight=torch.randn(48, 100)[:, 10:90]))
    check(**given | dict(weight=weight.T.contiguous().T, bias=torch.randn(96)[::2]))
    check(**given | dict(residual=torch.randn(2, 48, 24).transpose(1, 2)))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("std", [1e-20, 1e-4, 1e4, 1e18])
def test_large_and_small_numbers(std):
    check(**make((1, 40, 200, 40), std=std))


@pytest.mark.usefixtures("kernel")
def test_one_large_number_among_small_ones():
    inputs = make((1, 64, 256, 64))
    inputs["x"][:, :, 7] *= 1e4
    check(**inputs)


@pytest.mark.usefixtures("kernel")
def test_the_thread_count_does_not_change_the_result():
    inputs = make((2, 100, 128, 300), activation="silu")
    with fastdiff.use("cpu"):
        check_threads(lambda: linear(**inputs))


@pytest.mark.usefixtures("kernel")
def test_empty_ones():
    with fastdiff.use("cpu"):
        assert linear(torch.randn(0, 4, 8), torch.randn(5, 8)).shape == (0, 4, 5)
        assert linear(torch.randn(2, 4, 8), torch.randn(0, 8)).shape == (2, 4, 0)
        assert torch.equal(linear(torch.randn(2, 4, 0), torch.randn(5, 0), torch.ones(5)), torch.ones(2, 4, 5))


@pytest.mark.usefixtures("kernel")
def test_a_changed_weight_is_seen():
    inputs = make((1, 128, 64, 64))
    with fastdiff.use("cpu"):
        before = linear(**inputs)
        inputs["weight"].mul_(2)
        after = linear(**inputs)
    assert not torch.equal(before, after)
    check(**inputs)


@pytest.mark.usefixtures("kernel")
def test_gradients():
    inputs = make((2, 20, 40, 30), activation="gelu_tanh", gate=True, residual=True)
    direction = torch.randn(2, 20, 30)
    check_gradients(linear, inputs, direction, terms=40)
    x, weight, bias, *_ = inputs.values()
    check_gradients(linear, dict(x=x, weight=list(weight.split(15)), bias=list(bias.split(15))), direction, terms=40)


def test_opcheck():
    x, weight, bias, *_ = make((2, 20, 40, 30)).values()
    gate, residual = torch.randn(2, 1, 30), torch.randn(2, 20, 30)
    for arguments in (
        (x, weight, None, None, None, "none"),
        (x, weight, bias, gate, residual, "silu"),
        (x, weight, bias, None, None, "gelu", True, weight, bias),
    ):
        torch.library.opcheck(torch.ops.fastdiff.linear.default, arguments)


def test_reasons(isa):
    x, weight, bias, *_ = make((1, 128, 64, 512)).values()
    half = (x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    assert "float32" in unsupported(linear, *half)
    assert torch.equal(linear(*half), linear.plain(*half))
    if not core.has_linear():
        assert isa in unsupported(linear, x, weight, bias)
        assert torch.equal(linear(x, weight, bias), linear.plain(x, weight, bias))
        with fastdiff.use("cpu"), pytest.raises(NotImplementedError, match="AMX"):
            linear(x, weight, bias)
        return
    assert unsupported(linear, x, weight, bias) is None
    assert slower(linear, x, weight, bias) is None
    assert "rows" in slower(linear, x[:, :8], weight, bias)
    assert "outputs" in slower(linear, x, weight[:240], bias[:240])
    assert "gradient" in slower(linear, x, weight.requires_grad_(), bias)


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
