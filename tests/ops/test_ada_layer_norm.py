"""ada_layer_norm against float64: every instruction set and type, odd sizes, the views of chunk(6), far means,
gradients."""

import pytest
import torch
from operators import TYPES, check_results, check_threads, unsupported
from torch.autograd import forward_ad

import fastdiff
from fastdiff.bench.cases.ada_layer_norm import AFFINE, make
from fastdiff.ops import ada_layer_norm

# (B, S, C): sizes of DiT and of nothing in particular; a row that fills no vector, one of several, and empty ones.
SHAPES = [(2, 256, 1152), (1, 3, 1), (2, 5, 7), (3, 1, 16), (1, 4, 63), (2, 3, 130), (1, 2, 1000), (0, 4, 8), (2, 0, 8)]


def modulated(shape, dtype=torch.float32, **options):
    """x, scale and shift."""
    return tuple(make(shape, dtype, **options).values())[:3]


def check(inputs):
    assert unsupported(ada_layer_norm, **inputs) is None
    (y,) = check_results(ada_layer_norm, inputs, terms=inputs["x"].shape[2])
    assert y.is_contiguous()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(isa, shape, dtype):
    check(make(shape, dtype, left_out=AFFINE))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("left_out", [(), ("bias",), AFFINE])
@pytest.mark.parametrize("per_row", [(), ("scale",), ("scale", "shift")])
def test_what_may_be_left_out(isa, dtype, left_out, per_row):
    check(make((2, 5, 77), dtype, left_out=left_out, per_row=per_row))


@pytest.mark.parametrize(("mean", "std"), [(1000.0, 1.0), (-30.0, 1e-2), (0.0, 1e-4), (0.0, 1e4), (5.0, 0.0)])
def test_far_means_and_scales(isa, mean, std):
    check(make((2, 9, 640), mean=mean, std=std, left_out=AFFINE))


def test_every_size(isa):
    """Tails: nothing beyond the row is read into the statistics, every value is written and no other."""
    for channels in range(1, 70):
        check(make((1, 2, channels), seed=channels, left_out=AFFINE))


def test_views(isa):
    """Rows with strides, batches with strides, and a last dimension that is not contiguous, which is copied."""
    x, scale, shift = modulated((4, 12, 64))
    for given in (
        (x[::2, ::3], scale[::2], shift[::2]),
        (x[1::2, 2::3], scale[::2], shift[::2]),
        (x.transpose(0, 1), scale[:1].expand(12, 1, 64), shift[:1].expand(12, 1, 64)),
        (x.transpose(1, 2), scale[..., :12], shift[..., :12]),
        (x[..., ::5][..., :1], scale[..., ::5][..., :1], shift[..., ::5][..., :1]),  # one channel, any stride
    ):
        check(dict(zip(("x", "scale", "shift"), given)))


def test_nan_stays_in_its_row(isa):
    x, scale, shift = modulated((2, 3, 40))
    x[1, 2, 39] = float("nan")
    with fastdiff.use("cpu"):
        y = ada_layer_norm(x, scale, shift)
    assert y[1, 2].isnan().all()
    assert y[1, :2].isfinite().all()
    assert y[0].isfinite().all()


def test_threads_do_not_change_the_result():
    inputs = make((2, 256, 1152))
    check_threads(lambda: ada_layer_norm(**inputs))


def test_opcheck():
    x, scale, shift, weight, bias = (t.clone().requires_grad_() for t in make((2, 3, 8)).values())
    torch.library.opcheck(torch.ops.fastdiff.ada_layer_norm, (x, scale, shift, weight, bias.detach(), 1e-6))
    torch.library.opcheck(torch.ops.fastdiff.ada_layer_norm, (x, scale, shift, None, None, 1e-6))


def test_gradcheck():
    x, scale, shift = (t.requires_grad_() for t in modulated((2, 3, 5), torch.float64))
    assert torch.autograd.gradcheck(ada_layer_norm, (x, scale, shift))


def test_compiles_without_a_graph_break():
    x, scale, shift = modulated((2, 3, 16))

    def block(x):
        return ada_layer_norm(x.sin(), scale, shift) * 2

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), block(x))


def test_what_the_kernel_cannot_take():
    x, scale, shift = modulated((2, 3, 8), torch.float64)
    assert "float64" in unsupported(ada_layer_norm, x, scale, shift)
    assert torch.equal(ada_layer_norm(x, scale, shift), ada_layer_norm.plain(x, scale, shift))
    with fastdiff.use("cpu"), pytest.raises(NotImplementedError, match="float64"):
        ada_layer_norm(x, scale, shift)
    x, scale, shift = modulated((2, 3, 8))
    with forward_ad.dual_level():
        y = ada_layer_norm(forward_ad.make_dual(x, torch.ones_like(x)), scale, shift)
        assert forward_ad.unpack_dual(y).tangent is not None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(x=torch.ones(3, 8)), ValueError, r"x must be \(B, S, C\) and have channels, got \(3, 8\)"),
        (dict(x=torch.ones(2, 3, 0)), ValueError, "have channels"),
        (dict(scale=torch.ones(2, 2, 8)), ValueError, r"scale is \(2, 2, 8\), expected \(2, 1, 8\) or \(2, 3, 8\)"),
        (dict(weight=torch.ones(7)), ValueError, r"weight is \(7,\), expected \(8,\)"),
        (dict(bias=torch.ones(8)), ValueError, "bias needs weight"),
        (dict(shift=torch.ones(2, 1, 8).double()), TypeError, "shift is torch.float64, x is torch.float32"),
        (dict(shift=torch.ones(2, 1, 8, device="meta")), ValueError, "shift is on meta"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        ada_layer_norm(**make((2, 3, 8), left_out=AFFINE) | change)


def test_the_registered_operator_checks_as_much():
    x, scale, shift = modulated((2, 3, 8))
    operator = torch.ops.fastdiff.ada_layer_norm
    assert torch.equal(operator(x, scale, shift, None, None, 1e-6), ada_layer_norm(x, scale, shift))
    with pytest.raises(ValueError, match="scale is"):
        operator(x, scale[..., :7], shift, None, None, 1e-6)
    with pytest.raises(TypeError, match=r"shift is torch\.float64"):
        operator(x, scale, shift.double(), None, None, 1e-6)
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        operator(x.double(), scale.double(), shift.double(), None, None, 1e-6)
