"""linear's kernel against float64: odd sizes, views, what follows the product."""

import pytest
import torch
from operators import check_gradients, check_results, check_threads, needs_matrix_units

import fastdiff
from fastdiff.bench.cases.linear import make
from fastdiff.ops import linear
from fastdiff.ops.linear import ACTIVATIONS

needs_matrix_units()
pytestmark = pytest.mark.usefixtures("matrix_units")

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


def check(**inputs):
    """The floor is the rounding of the result."""
    (y,) = check_results(linear, inputs)
    assert y.is_contiguous()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size):
    check(**make(size))
    check(**make(size, bias=False))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("per_row", [False, True])
def test_what_follows_the_product(activation, per_row):
    for follows in ({}, dict(gate=True), dict(residual=True), dict(gate=True, residual=True)):
        check(**make((2, 37, 96, 50), activation=activation, per_row=per_row, **follows))


@pytest.mark.parametrize("size", [(2, 37, 96, 50), (3, 100, 70, 22), (1, 40, 1600, 98), (1, 300, 900, 34)], ids=str)
def test_glu(size):
    """Few rows and many, one panel of numbers and more, and halves that end within a tile."""
    for activation in ACTIVATIONS:
        check(**make(size, activation=activation, glu=True))
    check(**make(size, activation="gelu", glu=True, bias=False))
    check(**make(size, glu=True, gate=True))
    check(**make(size, glu=True, activation="silu", residual=True))


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


def test_views():
    x, weight, bias, *_ = make((2, 24, 80, 48)).values()
    given = dict(x=x, weight=weight, bias=bias)
    check(**given | dict(x=x.transpose(0, 1).contiguous().transpose(0, 1)))
    check(**given | dict(x=torch.randn(2, 24, 160)[..., ::2]))
    check(**given | dict(weight=torch.randn(48, 100)[:, 10:90]))
    check(**given | dict(weight=weight.T.contiguous().T, bias=torch.randn(96)[::2]))
    check(**given | dict(residual=torch.randn(2, 48, 24).transpose(1, 2)))


@pytest.mark.parametrize("std", [1e-20, 1e-4, 1e4, 1e18])
def test_large_and_small_numbers(std):
    check(**make((1, 40, 200, 40), std=std))


def test_one_large_number_among_small_ones():
    inputs = make((1, 64, 256, 64))
    inputs["x"][:, :, 7] *= 1e4
    check(**inputs)


def test_the_thread_count_does_not_change_the_result():
    inputs = make((2, 100, 128, 300), activation="silu")
    with fastdiff.use("cpu"):
        check_threads(lambda: linear(**inputs))


def test_empty_ones():
    with fastdiff.use("cpu"):
        assert linear(torch.randn(0, 4, 8), torch.randn(5, 8)).shape == (0, 4, 5)
        assert linear(torch.randn(2, 4, 8), torch.randn(0, 8)).shape == (2, 4, 0)
        assert torch.equal(linear(torch.randn(2, 4, 0), torch.randn(5, 0), torch.ones(5)), torch.ones(2, 4, 5))


def test_a_changed_weight_is_seen():
    inputs = make((1, 128, 64, 64))
    with fastdiff.use("cpu"):
        before = linear(**inputs)
        inputs["weight"].mul_(2)
        after = linear(**inputs)
    assert not torch.equal(before, after)
    check(**inputs)


def test_gradients():
    inputs = make((2, 20, 40, 30), activation="gelu_tanh", gate=True, residual=True)
    direction = torch.randn(2, 20, 30)
    check_gradients(linear, inputs, direction, terms=40)
    x, weight, bias, *_ = inputs.values()
    check_gradients(linear, dict(x=x, weight=list(weight.split(15)), bias=list(bias.split(15))), direction, terms=40)
