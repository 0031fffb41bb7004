"""Gradients of ada_layer_norm's own kernel against float64: instruction sets, types, views, and when it is used."""

import math

import pytest
import torch
from operators import TYPES, check_gradients, check_threads, gradients, slower

import fastdiff
from fastdiff.bench.cases import tensors, wanting_gradients
from fastdiff.bench.cases.ada_layer_norm import make
from fastdiff.ops import ada_layer_norm

SHAPES = [(2, 256, 1152), (1, 3, 1), (2, 5, 7), (3, 1, 16), (1, 130, 63), (2, 3, 130), (0, 4, 8), (2, 0, 8)]


def terms_of_x(inputs, cotangent):
    """The size of what the gradient of x is the difference of: gradients of the normalized numbers over deviations."""
    factors = [inputs["scale"].double() + 1, *([] if inputs["weight"] is None else [inputs["weight"].double()])]
    largest = cotangent.double().abs().max() * math.prod(float(t.abs().max()) for t in factors)
    variance = inputs["x"].double().var(dim=2, correction=0)
    return float(largest * (variance.min() + 1e-6).rsqrt())


def check(inputs, cotangent=None):
    """Gradients of scale and shift are sums over rows, that of x over channels."""
    x = inputs["x"]
    if cotangent is None:
        cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    sizes = {"x": terms_of_x(inputs, cotangent)} if x.numel() else {}
    check_gradients(ada_layer_norm, inputs, cotangent, max(x.shape[0] * x.shape[1], x.shape[2]), sizes)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(isa, shape, dtype):
    check(make(shape, dtype))


@pytest.mark.parametrize("per_row", [(), ("scale",), ("scale", "shift")])
@pytest.mark.parametrize("left_out", [(), ("bias",), ("weight", "bias")])
def test_what_may_be_left_out(isa, left_out, per_row):
    check(make((2, 5, 77), left_out=left_out, per_row=per_row))


@pytest.mark.parametrize(("mean", "std"), [(1000.0, 1.0), (-30.0, 1e-2), (0.0, 1e-4), (0.0, 1e4)])
def test_far_means_and_scales(isa, mean, std):
    check(make((2, 9, 640), mean=mean, std=std))


def test_every_size(isa):
    for channels in range(1, 70):
        check(make((1, 2, channels)))
    for rows in (63, 64, 65, 129):
        check(make((2, rows, 5)))


def test_views(isa):
    """Rows and batches with strides, channels that are not contiguous, and a gradient without memory of its own."""
    x, scale, shift, *_ = make((4, 12, 64)).values()
    affine = dict(weight=None, bias=None)
    check(dict(x=x[::2, ::3], scale=scale[::2], shift=shift[::2], **affine))
    turned = dict(x=x.transpose(1, 2), scale=scale[..., :12], shift=shift[..., :12], **affine)
    check(turned, torch.randn(4, 12, 64).transpose(1, 2))
    check(turned, torch.ones(()).expand(4, 64, 12))


def test_threads_do_not_change_the_result():
    inputs = make((2, 256, 1152))
    with fastdiff.use("cpu"):
        check_threads(lambda: gradients(ada_layer_norm, inputs, [inputs["x"].cos()]).values())


@pytest.mark.parametrize("per_row", [(), ("scale", "shift")])
def test_gradients_of_gradients(per_row):
    """They go through the reference, also where the first gradient is that of a plain sum, in which neither shift nor
    bias is left."""

    def second(inputs):
        inputs = wanting_gradients(inputs)
        first = torch.autograd.grad(ada_layer_norm(**inputs).sum(), tensors(inputs), create_graph=True)
        return torch.autograd.grad(sum(g.sin().sum() for g in first), [inputs[n] for n in ("x", "scale", "weight")])

    given = make((2, 3, 8), per_row=per_row)
    with fastdiff.use("cpu"):
        ours = second(given)
    with fastdiff.use("reference"):
        theirs = second(given)
    assert all(map(torch.equal, ours, theirs))


def test_only_what_is_wanted():
    inputs = {name: t.requires_grad_(name in ("shift", "bias")) for name, t in make((2, 3, 8)).items()}
    with fastdiff.use("cpu"):
        ada_layer_norm(**inputs).sum().backward()
    assert {name for name, t in inputs.items() if t.grad is not None} == {"shift", "bias"}


def test_the_registered_operators():
    inputs = make((2, 3, 8))
    cotangent, plain = torch.randn(2, 3, 8), [*inputs.values(), 1e-6]
    leaves = list(wanting_gradients(inputs).values())
    by_name = torch.autograd.grad(torch.ops.fastdiff.ada_layer_norm(*leaves, 1e-6), leaves, cotangent)
    with fastdiff.use("cpu"):
        direct = gradients(ada_layer_norm, inputs, [cotangent]).values()
    assert all(torch.equal(a, b) for a, b in zip(by_name, direct))
    backward = torch.ops.fastdiff.ada_layer_norm_backward
    torch.library.opcheck(backward, (cotangent, *plain))
    torch.library.opcheck(backward, (cotangent, *plain[:3], None, None, 1e-6))
    with pytest.raises(ValueError, match=r"gradient is \(2, 2, 8\)"):
        backward(cotangent[:, :2], *plain)
    with pytest.raises(ValueError, match="scale or shift differ from row to row"):
        backward(cotangent, plain[0], plain[0], *plain[2:])
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        backward(*(t.double() if isinstance(t, torch.Tensor) else t for t in (cotangent, *plain)))


def test_compiles_with_gradients():
    inputs = wanting_gradients(make((2, 3, 16)))
    x, scale, shift, *_ = inputs.values()

    def block(x):
        return ada_layer_norm(x.sin(), scale, shift).square().sum()

    with fastdiff.use("cpu"):
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
        found, expected = (torch.autograd.grad(f(x), (x, scale, shift)) for f in (compiled, block))
    assert all(map(torch.equal, found, expected))


def test_torch_runs_where_it_is_faster():
    """A few numbers take less time in torch than our calls, and modulation by row has no kernel for its gradients."""
    small, large = (wanting_gradients(make(shape)) for shape in ((2, 3, 8), (2, 256, 512)))
    assert "few" in slower(ada_layer_norm, **small)
    assert torch.equal(ada_layer_norm(**small), ada_layer_norm.plain(**small))
    assert slower(ada_layer_norm, **large) is None
    assert "fastdiff" in type(ada_layer_norm(**large).grad_fn).__name__
    assert "row" in slower(ada_layer_norm, **wanting_gradients(make((2, 256, 512), per_row=("scale",))))
    with torch.no_grad():
        assert slower(ada_layer_norm, **small) is None
    with fastdiff.use("cpu"):
        assert "fastdiff" in type(ada_layer_norm(**small).grad_fn).__name__
