"""linear: who computes, errors, and the operator by its name."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_no_worse, floor
from operators import slower, unsupported

import fastdiff
from fastdiff.bench.cases.linear import make
from fastdiff.ops import linear
from fastdiff.runtime.native import core


def test_gelu_far_from_zero():
    """Of a weight of one number the result is the activation itself."""
    x = torch.cat([torch.linspace(-20, 20, 3001), torch.tensor([-1e30, 1e30, 0.0])])[None, :, None]
    with fastdiff.use("cpu" if core.has_linear() else "reference"):
        ours = linear(x, torch.ones(1, 1), activation="gelu")
    assert_no_worse(ours, F.gelu(x), F.gelu(x.double()), floor=floor(x[:, :-3], torch.float32))


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
