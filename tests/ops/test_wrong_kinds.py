"""Operators name the argument that is no tensor."""

import re

import numpy as np
import pytest
import torch

import fastdiff


def test_an_array_among_tensors_is_named():
    row, array = torch.zeros(1, 2, 3), np.zeros((1, 2, 3), dtype=np.float32)
    for given, name in (((row, array, row), "scale"), ((row, row, array), "shift")):
        with pytest.raises(TypeError, match=f"{name} must be a tensor, got ndarray"):
            fastdiff.ops.ada_layer_norm(*given)


def calls_of_operators():
    """Each operator's name with arguments that it takes."""
    x, row = torch.zeros(2, 4, 64), torch.zeros(2, 1, 64)
    image, heads = torch.zeros(2, 64, 4, 4), torch.zeros(2, 4, 8, 16)
    vector, pixel = {"weight": torch.zeros(64), "bias": torch.zeros(64)}, image[..., 0, 0]
    modulation = {"scale": row, "shift": row}
    return {
        "ada_layer_norm": {"x": x, **modulation, **vector},
        "residual_ada_layer_norm": {"y": x, "residual": x, "gate": row, **modulation, **vector},
        "group_norm_silu": {"x": image, "num_groups": 8, **vector, "scale": pixel, "shift": pixel},
        "add_group_norm_silu": {
            "x": image, "num_groups": 8, "conv_bias": torch.zeros(64), "channel_bias": pixel,
            "residual": image, **vector,
        },
        "attention": {"q": heads, "k": heads, "v": heads, "mask": torch.zeros(8, 8)},
        "linear": {
            "x": x, "weight": torch.zeros(8, 64), "bias": torch.zeros(8), "gate": row[..., :8], "residual": x[..., :8]
        },
        "conv2d": {
            "x": image, "weight": torch.zeros(64, 64, 3, 3), "bias": torch.zeros(64), "residual": image,
            "channel_bias": pixel,
        },
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [3, 2.5, "x", {}, object(), [[1.0]], np.float32(1), np.zeros((2, 64)), (1.0,)])
def test_operators_name_what_is_no_tensor(wrong):
    calls = calls_of_operators()
    assert {*calls, "linear_combine"} == {*fastdiff.ops.OPS}
    for op, given in calls.items():
        fastdiff.ops.OPS[op](**given)
        for name in [name for name, value in given.items() if isinstance(value, torch.Tensor)]:
            with pytest.raises(TypeError, match=rf"^{name}(\[0\])? must be a tensor.*, got "):
                fastdiff.ops.OPS[op](**{**given, name: wrong})


def test_operators_name_which_of_several_is_no_tensor():
    x, image, array = torch.zeros(2, 4, 64), torch.zeros(2, 64, 4, 4), np.zeros((2, 64, 4, 4), dtype=np.float32)
    weight, ops = torch.zeros(64, 64, 3, 3), fastdiff.ops
    for call, message in (
        (lambda: ops.conv2d([image, array], weight), "x[1] must be a tensor, got ndarray"),
        (lambda: ops.conv2d(None, weight), "x must be a tensor or several of them, got NoneType"),
        (lambda: ops.group_norm_silu((array, image), 8), "x[0] must be a tensor, got ndarray"),
        (lambda: ops.linear(x, [torch.zeros(8, 64), None]), "weight[1] must be a tensor, got NoneType"),
        (lambda: ops.linear(x, [torch.zeros(8, 64)], [array]), "bias[0] must be a tensor or None, got ndarray"),
        (lambda: ops.linear(x, [torch.zeros(8, 64)], 3), "bias must be as many tensors or None as weights, 1, got int"),
        (lambda: ops.linear_combine([[1.0, 2.0]], [x, x.numpy()]), "inputs[1] must be a tensor, got ndarray"),
        (lambda: ops.linear_combine([[1.0, 2.0]], None), "inputs must be a tensor or several of them, got NoneType"),
        (lambda: ops.linear_combine([[1.0, 2.0]], [3]), "inputs[0] must be a tensor, got int"),
        (lambda: ops.linear_combine(2.0, [x]), "coefficients must be rows of numbers, got 2.0"),
        (lambda: ops.linear_combine([["a"]], [x]), "coefficients must be rows of numbers, got [['a']]"),
    ):
        with pytest.raises(TypeError, match=re.escape(message)):
            call()


NUMBERS = {
    "conv2d": {"stride": "a whole number", "padding": "a whole number", "upsample": "a whole number"},
    "attention": {"scale": "a number or None"},
    "group_norm_silu": {"num_groups": "a whole number", "eps": "a number"},
    "add_group_norm_silu": {"num_groups": "a whole number", "eps": "a number"},
    "ada_layer_norm": {"eps": "a number"},
    "residual_ada_layer_norm": {"eps": "a number"},
}


NO_NUMBERS = [
    (op, name, wrong)
    for op, named in NUMBERS.items()
    for name, wanted in named.items()
    for wrong in ("x", (1, 1), [2.0], {}, object(), torch.zeros(2), *(() if "None" in wanted else (None,)))
]


@pytest.mark.parametrize(("op", "name", "wrong"), NO_NUMBERS)
def test_operators_name_what_is_no_number(op, name, wrong):
    given = calls_of_operators()[op]
    with pytest.raises(TypeError, match=rf"^{name} must be {NUMBERS[op][name]}, got "):
        fastdiff.ops.OPS[op](**{**given, name: wrong})


@pytest.mark.parametrize("wrong", [1.5, "same", (1, 1)])
@pytest.mark.parametrize("name", ["stride", "padding"])
def test_steps_of_a_convolution_are_whole_numbers(name, wrong):
    given = calls_of_operators()["conv2d"]
    with pytest.raises(TypeError, match=re.escape(f"{name} must be a whole number, got {wrong!r}")):
        fastdiff.ops.conv2d(**{**given, name: wrong})


def test_a_convolution_names_what_is_out_of_range():
    given = calls_of_operators()["conv2d"]
    for name, wrong in (("stride", 0), ("padding", -1), ("upsample", 0)):
        with pytest.raises(ValueError, match=f"stride and upsample must be at least 1 .*{name}={wrong}"):
            fastdiff.ops.conv2d(**{**given, name: wrong})
    with pytest.raises(TypeError, match=r"upsample must be a whole number, got 1\.5"):
        fastdiff.ops.conv2d(**given, upsample=1.5)


def test_numbers_of_numpy_and_torch_are_numbers():
    calls = calls_of_operators()
    for op, name, number in (
        ("conv2d", "stride", np.int64(1)), ("attention", "scale", np.float32(0.25)),
        ("attention", "scale", torch.tensor(0.25)), ("group_norm_silu", "eps", np.float64(1e-5)),
    ):  # fmt: skip
        plain = number.item()
        found = fastdiff.ops.OPS[op](**calls[op], **{name: number})
        assert torch.equal(found, fastdiff.ops.OPS[op](**calls[op], **{name: plain}))
        with pytest.raises(TypeError, match="must be a tensor"):  # what is right is not blamed
            fastdiff.ops.OPS[op](**{**calls[op], next(iter(calls[op])): 3, name: number})


@pytest.mark.parametrize("op", ["ada_layer_norm", "residual_ada_layer_norm", "group_norm_silu", "add_group_norm_silu"])
@pytest.mark.parametrize("wrong", [float("nan"), -1e-6])
def test_norms_refuse_an_epsilon_that_is_none(op, wrong):
    with pytest.raises(ValueError, match=f"eps must be at least 0, got {wrong}"):
        fastdiff.ops.OPS[op](**calls_of_operators()[op], eps=wrong)


@pytest.mark.parametrize("wrong", ["x", 1, None, 0.0])
def test_glu_is_true_or_false(wrong):
    with pytest.raises(ValueError, match="glu must be True or False, got"):
        fastdiff.ops.linear(torch.zeros(2, 4, 64), torch.zeros(8, 64), glu=wrong)
