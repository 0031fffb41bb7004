"""Calls of operators on a GPU: what is asked in every call, whatever is kept by signature. The GPU is a stand-in."""

import contextlib

import pytest
import torch
from launches import OnDevice, as_on_gpu, half, launches
from torch._subclasses import FakeTensorMode

from fastdiff import ops
from fastdiff.runtime import choice
from fastdiff.runtime import triton as triton_kernels

pytestmark = pytest.mark.skipif(triton_kernels.INTERPRETED, reason="Triton interprets in this process")


@pytest.fixture
def launched(monkeypatch):
    with launches(monkeypatch) as found:
        yield found


def test_errors_are_as_before_whatever_is_kept(launched):
    op, x, row = as_on_gpu(ops.ada_layer_norm), half(2, 4, 64), half(2, 1, 64)
    op(x, row, row)
    with pytest.raises(ValueError, match="scale is"):
        op(x, row[:, :, :32], row)
    with pytest.raises(TypeError, match="shift is"):
        op(x, row, row.float())
    op(x, row, row)


def test_gradients_are_recorded_where_they_are_wanted(launched):
    op, x, row = as_on_gpu(ops.ada_layer_norm), half(2, 4, 64), half(2, 1, 64)
    leaf = x.clone().requires_grad_()
    for _ in range(2):
        assert op(x, row, row).grad_fn is None
        assert op(leaf, row, row).grad_fn is not None
        with torch.no_grad():
            assert op(leaf, row, row).grad_fn is None


def test_the_backend_in_force_is_asked(launched, monkeypatch):
    op, x, row = as_on_gpu(ops.ada_layer_norm), half(2, 4, 64), half(2, 1, 64)
    for _ in range(2):
        monkeypatch.setattr(choice, "_chosen", "triton")
        assert len(launched.by(lambda: op(x, row, row))) == 1
        monkeypatch.setattr(choice, "_chosen", "reference")
        assert not launched.by(lambda: op(x, row, row))
        assert torch.equal(op(x, row, row), ops.ada_layer_norm.plain(x, row, row))


def test_the_precision_of_products_is_asked(launched):
    op, q = as_on_gpu(ops.attention), torch.randn(1, 1, 16, 64)
    before = torch.get_float32_matmul_precision()
    try:
        functions = []
        for precision in ("highest", "high", "highest", "high"):
            torch.set_float32_matmul_precision(precision)
            functions.append(launched.by(lambda: op(q, q, q))[0][4])
    finally:
        torch.set_float32_matmul_precision(before)
    assert functions[0] != functions[1]
    assert functions == functions[:2] * 2


def test_transforms_and_modes_go_their_own_way(launched, monkeypatch):
    op, x, row = as_on_gpu(ops.ada_layer_norm), torch.randn(2, 4, 64), torch.randn(2, 1, 64)
    op(x, row, row)
    monkeypatch.setattr(choice, "_chosen", "reference")
    op(x, row, row)
    expected = ops.ada_layer_norm.plain(x, row, row)
    found = torch.func.vmap(lambda one: op(one[None], row[:1], row[:1])[0])(torch.stack([x[0], x[0]]))
    assert torch.allclose(found[0], ops.ada_layer_norm.plain(x[:1], row[:1], row[:1])[0], atol=1e-5)
    _, tangent = torch.func.jvp(lambda x: op(x, row, row), (x,), (torch.zeros_like(x),))
    assert tangent.shape == expected.shape
    assert not tangent.any()


def test_tensors_without_memory_give_such(monkeypatch):
    monkeypatch.setattr(triton_kernels, "too_old", lambda device: None)
    mode = FakeTensorMode()
    with mode:
        q, row = torch.empty(2, 4, 16, 64, device="cuda"), torch.empty(2, 4, 1, 16, device="cuda")
    for context in (mode, contextlib.nullcontext()):
        with context:
            assert ops.attention(q, q, q, mask=row).shape == q.shape
            assert ops.group_norm_silu(q, 2).device.type == "cuda"


@pytest.mark.parametrize(
    "unusual",
    [
        torch._to_functional_tensor,
        lambda x: torch.complex(x, x).conj().imag,  # negated when it is read
        lambda x: torch._efficientzerotensor(x.shape),
        torch.Tensor.to_sparse,
        lambda x: x.as_subclass(OnDevice),
    ],
    ids=["functional", "negative", "zero", "sparse", "subclass"],
)
def test_a_tensor_that_is_not_plain_memory_is_no_call_of_the_same_signature(launched, monkeypatch, unusual):
    op, x, row = as_on_gpu(ops.ada_layer_norm), torch.randn(2, 4, 64), torch.randn(2, 1, 64)
    other = unusual(x)
    if not other.is_sparse and other.stride() != x.stride():
        x = torch.randn(2, 4, 128)[..., ::2]
    for _ in range(2):
        assert len(launched.by(lambda: op(x, row, row))) == 1
    went = []
    monkeypatch.setattr(op, "dispatched", lambda a, inplace: went.append(a.x))
    for _ in range(2):
        assert not launched.by(lambda: op(other, row, row))
    assert len(went) == 2


def test_who_computes_in_pytorch_is_counted_in_every_call(monkeypatch):
    monkeypatch.setattr(choice, "_notes", {})
    op, x, weight = as_on_gpu(ops.linear), torch.randn(1, 4, 8, requires_grad=True), torch.randn(8, 8)
    op.takes = op._beyond = lambda a, *rest, **named: "it is on a GPU"  # without a gradient candidates are asked
    for _ in range(3):
        assert torch.equal(op(x, weight), torch.nn.functional.linear(x, weight))
    assert list(choice.notes().values()) == [3]


def test_types_are_made_one_under_autocast(launched):
    op, x, row = as_on_gpu(ops.ada_layer_norm), torch.randn(2, 4, 64), half(2, 1, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            (launch,) = launched.by(lambda: op(x, row, row))
    assert launch[0] == 8
