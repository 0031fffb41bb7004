"""Gradients of ada_layer_norm's own kernel against float64: instruction sets, types, views, and when it is used."""

import math

import pytest
import torch
from conftest import assert_no_worse

import fastdiff
from fastdiff.ops.ada_layer_norm import Arguments, ada_layer_norm
from fastdiff.runtime.dispatcher import wants_gradient

reference = ada_layer_norm.plain.positional


def faster_in_torch(*values, **named):
    a = Arguments(*values, **named)
    return ada_layer_norm.slower(a) or (ada_layer_norm.slower_backward(a) if wants_gradient(a) else None)


TYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(2, 256, 1152), (1, 3, 1), (2, 5, 7), (3, 1, 16), (1, 130, 63), (2, 3, 130), (0, 4, 8), (2, 0, 8)]
NAMES = ("x", "scale", "shift", "weight", "bias")


def make(shape, dtype=torch.float32, *, per_row=False, mean=0.0, std=1.0):
    """All arguments, by name, all of which want a gradient; scale and shift are views of one chunk(6)."""
    generator = torch.Generator().manual_seed(0)
    batch, rows, channels = shape
    x = mean + std * torch.randn(shape, generator=generator)
    table = torch.randn(batch, rows if per_row else 1, 6 * channels, generator=generator).to(dtype)
    scale, shift = table.chunk(6, dim=-1)[1:3]
    weight, bias = torch.randn(2, channels, generator=generator).to(dtype)
    tensors = (x.to(dtype), scale, shift, weight, bias)
    return {name: t.requires_grad_() for name, t in zip(NAMES, tensors)}


def gradients(function, inputs, cotangent):
    return torch.autograd.grad(function(**inputs), list(inputs.values()), cotangent)


def terms_of_x(inputs, cotangent):
    """The size of what the gradient of x is the difference of: gradients of the normalized numbers over deviations."""
    factors = [t.detach().double() + (name == "scale") for name, t in inputs.items() if name in ("scale", "weight")]
    largest = cotangent.double().abs().max() * math.prod(float(t.abs().max()) for t in factors)
    variance = inputs["x"].detach().double().var(dim=2, correction=0)
    return float(largest * (variance.min() + 1e-6).rsqrt())


def check(inputs, cotangent=None):
    """At most twice the error of torch at the same type; the floor is the rounding of the result, and of one number in
    each halving of what is summed up for it. The terms of the gradient of x, which may cancel, are rounded as well."""
    x = inputs["x"]
    if cotangent is None:
        cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    with fastdiff.use("cpu"):
        found = gradients(ada_layer_norm, inputs, cotangent)
    theirs = gradients(reference, inputs, cotangent)
    wide = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    exact = gradients(reference, wide, cotangent.double())
    depth = math.log2(max(2, x.shape[0] * x.shape[1], x.shape[2]))
    for name, ours, torchs, oracle in zip(inputs, found, theirs, exact):
        assert ours.dtype == x.dtype
        size = float(oracle.abs().max()) if oracle.numel() else 0.0
        if name == "x" and x.numel():
            size = max(size, terms_of_x(inputs, cotangent))
        eps = torch.finfo(x.dtype).eps + depth * torch.finfo(torch.float32).eps
        assert_no_worse(ours, torchs, oracle, floor=size * eps)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(isa, shape, dtype):
    check(make(shape, dtype))


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("left_out", [(), ("bias",), ("weight", "bias")])
def test_what_may_be_left_out(isa, left_out, per_row):
    check({name: t for name, t in make((2, 5, 77), per_row=per_row).items() if name not in left_out})


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
    plain = {name: t.detach() for name, t in make((4, 12, 64)).items()}
    batches = {name: plain[name][::2].requires_grad_() for name in ("scale", "shift")}
    check({"x": plain["x"][::2, ::3].requires_grad_(), **batches})
    turned = {name: plain[name][..., :12].requires_grad_() for name in ("scale", "shift")}
    turned["x"] = plain["x"].transpose(1, 2).requires_grad_()
    check(turned, torch.randn(4, 12, 64).transpose(1, 2))
    check(turned, torch.ones(()).expand(4, 64, 12))


def test_threads_do_not_change_the_result():
    inputs, threads = make((2, 256, 1152)), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            with fastdiff.use("cpu"):
                results.append(gradients(ada_layer_norm, inputs, inputs["x"].detach().cos()))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0]))


@pytest.mark.parametrize("per_row", [False, True])
def test_gradients_of_gradients(per_row):
    """They go through the reference, also where the first gradient is that of a plain sum, in which neither shift nor
    bias is left."""
    inputs = make((2, 3, 8), per_row=per_row)

    def second(backend):
        with fastdiff.use(backend):
            first = torch.autograd.grad(ada_layer_norm(**inputs).sum(), list(inputs.values()), create_graph=True)
        return torch.autograd.grad(sum(g.sin().sum() for g in first), [inputs[n] for n in ("x", "scale", "weight")])

    for ours, theirs in zip(second("cpu"), second("reference")):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_only_what_is_wanted():
    inputs = {name: t if name in ("shift", "bias") else t.detach() for name, t in make((2, 3, 8)).items()}
    with fastdiff.use("cpu"):
        ada_layer_norm(**inputs).sum().backward()
    assert {name for name, t in inputs.items() if t.grad is not None} == {"shift", "bias"}


def test_the_registered_operators():
    inputs = make((2, 3, 8))
    x, scale, shift, weight, bias = inputs.values()
    cotangent = torch.randn(2, 3, 8)
    arguments = (x, scale, shift, weight, bias, 1e-6)
    y = torch.ops.fastdiff.ada_layer_norm(*arguments)
    by_name = torch.autograd.grad(y, list(inputs.values()), cotangent)
    with fastdiff.use("cpu"):
        direct = gradients(ada_layer_norm, inputs, cotangent)
    assert all(torch.equal(a, b) for a, b in zip(by_name, direct))
    plain = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments]
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
    inputs = make((2, 3, 16))
    x, scale, shift, *_ = inputs.values()

    def block(x):
        return ada_layer_norm(x.sin(), scale, shift).square().sum()

    with fastdiff.use("cpu"):
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
        found, expected = (torch.autograd.grad(f(x), (x, scale, shift)) for f in (compiled, block))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)


def test_torch_runs_where_it_is_faster():
    """A few numbers take less time in torch than our calls, and modulation by row has no kernel for its gradients."""
    small = make((2, 3, 8))
    assert "few" in faster_in_torch(**small)
    assert torch.equal(ada_layer_norm(**small), reference(**small))
    large = make((2, 256, 512))
    assert faster_in_torch(**large) is None
    assert "fastdiff" in type(ada_layer_norm(**large).grad_fn).__name__
    assert "row" in faster_in_torch(**make((2, 256, 512), per_row=True))
    with torch.no_grad():
        assert faster_in_torch(**small) is None
    with fastdiff.use("cpu"):
        assert "fastdiff" in type(ada_layer_norm(**small).grad_fn).__name__
