"""ada_layer_norm against float64: every instruction set and type, odd sizes, the views of chunk(6), far means,
gradients."""

import pytest
import torch
from conftest import assert_no_worse
from torch.autograd import forward_ad

import fastdiff
from fastdiff.ops.ada_layer_norm import Arguments, ada_layer_norm

reference = ada_layer_norm.plain.positional


def supports(*values, **named):
    return ada_layer_norm.unsupported(Arguments(*values, **named))


TYPES = (torch.float32, torch.bfloat16, torch.float16)
# (B, S, C): sizes of DiT and of nothing in particular; a row that fills no vector, one of several, and empty ones.
SHAPES = [(2, 256, 1152), (1, 3, 1), (2, 5, 7), (3, 1, 16), (1, 4, 63), (2, 3, 130), (1, 2, 1000), (0, 4, 8), (2, 0, 8)]


def make(shape, dtype=torch.float32, *, seed=0, per_row=False, mean=0.0, std=1.0):
    """x, scale, shift; those of a batch as the views of one chunk(6), as DiT makes them."""
    generator = torch.Generator().manual_seed(seed)
    batch, rows, channels = shape
    x = mean + std * torch.randn(shape, generator=generator)
    table = torch.randn(batch, rows if per_row else 1, 6 * channels, generator=generator)
    scale, shift = table.to(dtype).chunk(6, dim=-1)[1:3]
    return x.to(dtype), scale, shift


def check(x, scale, shift, weight=None, bias=None):
    """At most twice the error of torch at the same type; the floor is the rounding of the output and of the
    statistics."""
    options = dict(weight=weight, bias=bias)
    assert supports(x, scale, shift, weight, bias, 1e-6) is None
    with fastdiff.use("cpu"):
        ours = ada_layer_norm(x, scale, shift, **options)
    theirs = reference(x, scale, shift, **options)
    wide = {name: None if t is None else t.double() for name, t in options.items()}
    oracle = reference(x.double(), scale.double(), shift.double(), **wide)
    assert ours.dtype == x.dtype
    assert ours.is_contiguous()
    size = float(oracle.abs().max()) if oracle.numel() else 0.0
    assert_no_worse(ours, theirs, oracle, floor=size * (torch.finfo(x.dtype).eps + 4 * torch.finfo(torch.float32).eps))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(isa, shape, dtype):
    x, scale, shift = make(shape, dtype)
    check(x, scale, shift)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("affine", [None, "weight", "both"])
@pytest.mark.parametrize("per_row", [False, True])
def test_what_may_be_left_out(isa, dtype, affine, per_row):
    x, scale, shift = make((2, 5, 77), dtype, per_row=per_row)
    weight, bias = torch.randn(2, 77, generator=torch.Generator().manual_seed(1)).to(dtype)
    check(x, scale, shift, weight if affine else None, bias if affine == "both" else None)


@pytest.mark.parametrize(("mean", "std"), [(1000.0, 1.0), (-30.0, 1e-2), (0.0, 1e-4), (0.0, 1e4), (5.0, 0.0)])
def test_far_means_and_scales(isa, mean, std):
    check(*make((2, 9, 640), mean=mean, std=std))


def test_every_size(isa):
    """Tails: nothing beyond the row is read into the statistics, every value is written and no other."""
    for channels in range(1, 70):
        check(*make((1, 2, channels), seed=channels))


def test_views(isa):
    """Rows with strides, batches with strides, and a last dimension that is not contiguous, which is copied."""
    x, scale, shift = make((4, 12, 64))
    check(x[::2, ::3], scale[::2], shift[::2])
    check(x[1::2, 2::3], scale[::2], shift[::2])
    check(x.transpose(0, 1), scale[:1].expand(12, 1, 64), shift[:1].expand(12, 1, 64))
    check(x.transpose(1, 2), scale[..., :12], shift[..., :12])
    check(x[..., ::5][..., :1], scale[..., ::5][..., :1], shift[..., ::5][..., :1])  # one channel, any stride


def test_nan_stays_in_its_row(isa):
    x, scale, shift = make((2, 3, 40))
    x[1, 2, 39] = float("nan")
    with fastdiff.use("cpu"):
        y = ada_layer_norm(x, scale, shift)
    assert y[1, 2].isnan().all()
    assert y[1, :2].isfinite().all()
    assert y[0].isfinite().all()


def test_threads_do_not_change_the_result():
    x, scale, shift = make((2, 256, 1152))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(ada_layer_norm(x, scale, shift))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_opcheck():
    x, scale, shift = (t.clone().requires_grad_() for t in make((2, 3, 8)))
    weight, bias = torch.randn(8, requires_grad=True), torch.randn(8)
    arguments = (x, scale, shift, weight, bias, 1e-6)
    torch.library.opcheck(torch.ops.fastdiff.ada_layer_norm, arguments)
    torch.library.opcheck(torch.ops.fastdiff.ada_layer_norm, (x, scale, shift, None, None, 1e-6))


def test_gradients_are_the_references():
    tensors = [t.clone().requires_grad_() for t in make((2, 5, 24))]
    weight, bias = torch.randn(2, 24, generator=torch.Generator().manual_seed(1)).unbind()
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()

    def gradients(backend):
        x, scale, shift = tensors
        with fastdiff.use(backend):
            y = ada_layer_norm(x, scale, shift, weight=weight, bias=bias)
        return torch.autograd.grad((y * y.detach().cos()).sum(), [*tensors, weight, bias])

    for ours, theirs in zip(gradients("cpu"), gradients("reference")):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradcheck():
    assert torch.autograd.gradcheck(ada_layer_norm, tuple(t.double().requires_grad_() for t in make((2, 3, 5))))


def test_compiles_without_a_graph_break():
    x, scale, shift = make((2, 3, 16))

    def block(x):
        return ada_layer_norm(x.sin(), scale, shift) * 2

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x))


def test_what_the_kernel_cannot_take():
    x, scale, shift = (t.double() for t in make((2, 3, 8)))
    assert "float64" in supports(x, scale, shift)
    assert torch.equal(ada_layer_norm(x, scale, shift), reference(x, scale, shift))
    with fastdiff.use("cpu"), pytest.raises(NotImplementedError, match="float64"):
        ada_layer_norm(x, scale, shift)
    x, scale, shift = make((2, 3, 8))
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
    x, scale, shift = make((2, 3, 8))
    arguments = dict(x=x, scale=scale, shift=shift) | change
    with pytest.raises(error, match=message):
        ada_layer_norm(arguments.pop("x"), arguments.pop("scale"), arguments.pop("shift"), **arguments)


def test_the_registered_operator_checks_as_much():
    x, scale, shift = make((2, 3, 8))
    operator = torch.ops.fastdiff.ada_layer_norm
    assert torch.equal(operator(x, scale, shift, None, None, 1e-6), ada_layer_norm(x, scale, shift))
    with pytest.raises(ValueError, match="scale is"):
        operator(x, scale[..., :7], shift, None, None, 1e-6)
    with pytest.raises(TypeError, match=r"shift is torch\.float64"):
        operator(x, scale, shift.double(), None, None, 1e-6)
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        operator(x.double(), scale.double(), shift.double(), None, None, 1e-6)
