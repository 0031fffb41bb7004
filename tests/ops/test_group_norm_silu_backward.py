"""Gradients of group_norm_silu's own kernel against float64: instruction sets, types, layouts, and when it is used."""

import math

import pytest
import torch
from conftest import assert_no_worse

import fastdiff
from fastdiff.ops.group_norm_silu import Arguments, group_norm_silu
from fastdiff.runtime.dispatcher import wants_gradient

reference = group_norm_silu.plain.positional


def faster_in_torch(*values, **named):
    a = Arguments(*values, **named)
    return group_norm_silu.slower(a) or (group_norm_silu.slower_backward(a) if wants_gradient(a) else None)


TYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
# (shape, groups): both ways through memory, odd sizes, several parts of pixels, groups beyond the cache, no samples.
CASES = [
    ((2, 320, 16, 16), 32),
    ((1, 6, 7, 5), 3),
    ((3, 5, 11), 1),
    ((1, 64, 33, 35), 4),
    ((4, 12, 1, 1), 12),
    ((2, 30, 3, 5, 2), 10),
    ((2, 8), 2),
    ((0, 8, 4, 4), 2),
    ((1, 3, 50, 50), 3),
    ((1, 8, 370, 371), 8),
]


def make(shape, dtype=torch.float32, *, mean=0.0, std=1.0, last=False):
    """x, weight, bias, scale, shift, all of which want a gradient."""
    generator = torch.Generator().manual_seed(0)
    x = mean + std * torch.randn(shape, generator=generator)
    if last:
        x = x.contiguous(memory_format=LAYOUTS[x.ndim])
    weight, bias = torch.randn(2, shape[1], generator=generator)
    scale, shift = torch.randn(2, *shape[:2], generator=generator)
    return [t.to(dtype).requires_grad_() for t in (x, weight, bias, scale, shift)]


def wide(value):
    return value.detach().double().requires_grad_() if isinstance(value, torch.Tensor) else value


def gradients(function, inputs, groups, activation, cotangent):
    x, weight, bias, scale, shift = inputs
    y = function(x, groups, weight, bias, 1e-5, scale=scale, shift=shift, activation=activation)
    return torch.autograd.grad(y, [t for t in inputs if t is not None], cotangent)


def terms(inputs, groups, cotangent, of_x):
    """The size of what a gradient is a sum or difference of: the cotangent times the factors of the normalized numbers;
    for the gradient of x over the deviations."""
    x, weight, _, scale, _ = inputs
    largest = cotangent.double().abs().max() * (1 if weight is None else weight.double().abs().max())
    largest = largest * (1 if scale is None else (1 + scale.double()).abs().max())
    if not of_x:
        return float(largest)
    variance = x.double().contiguous().view(x.shape[0] * groups, -1).var(dim=1, correction=0)
    return float(largest * (variance.min() + 1e-5).rsqrt())


def check(inputs, groups, activation="silu", cotangent=None):
    """At most twice the error of torch at the same type; the floor is the rounding of the result, and of one number in
    each halving of what is summed up for it. Terms, which may cancel, are rounded as well."""
    x = inputs[0]
    if cotangent is None:
        cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    with fastdiff.use("cpu"):
        found = gradients(group_norm_silu, inputs, groups, activation, cotangent)
    theirs = gradients(reference, inputs, groups, activation, cotangent)
    exact = gradients(reference, [wide(t) for t in inputs], groups, activation, cotangent.double())
    assert found[0].shape == x.shape
    depth = math.log2(max(2, x.numel() // max(1, min(groups, x.shape[1]))))
    for number, (ours, torchs, oracle) in enumerate(zip(found, theirs, exact)):
        assert ours.dtype == x.dtype
        size = float(oracle.abs().max()) if oracle.numel() else 0.0
        if x.numel():
            size = max(size, terms(inputs, groups, cotangent, number == 0))
        eps = torch.finfo(x.dtype).eps + depth * torch.finfo(torch.float32).eps
        assert_no_worse(ours, torchs, oracle, floor=size * eps)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("shape", "groups"), CASES)
def test_shapes(isa, shape, groups, dtype):
    for last in (False, True):
        if not last or len(shape) in LAYOUTS:
            check(make(shape, dtype, last=last), groups)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("activation", ["silu", "none"])
@pytest.mark.parametrize("present", [(1, 1, 0, 0), (0, 0, 1, 1), (1, 0, 0, 1), (1, 1, 1, 0), (0, 0, 0, 0)])
def test_what_may_be_left_out(isa, present, activation, last):
    x, *rest = make((2, 12, 9, 7), last=last)
    for groups in (3, 4):
        check([x, *(t if there else None for t, there in zip(rest, present))], groups, activation)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize(("mean", "std"), [(1000.0, 1.0), (-30.0, 1e-2), (0.0, 1e-4), (0.0, 1e4)])
def test_far_means_and_scales(isa, mean, std, last):
    for groups in (2, 16):
        check(make((1, 32, 40, 30), mean=mean, std=std, last=last), groups)


def test_every_size(isa):
    for pixels in (*range(1, 40), 1023, 1024, 1025):
        check(make((1, 6, 1, pixels)), 2)
        check(make((4, 6, 1, pixels)), 3)
    for channels in range(1, 40):
        check(make((1, channels, 3, 5), last=True), 1)


def test_views(isa):
    """x and the gradient in another layout than the result, and a gradient without memory of its own."""
    x, weight, bias, scale, shift = (t.detach() for t in make((4, 12, 10, 8)))
    views = x.transpose(2, 3), weight, bias, scale[..., None, None], shift[..., None, None]
    inputs = [t.requires_grad_() for t in views]
    cotangent = torch.randn(4, 8, 10, 12).movedim(3, 1)
    check(inputs, 3, cotangent=cotangent)
    check(inputs, 3, cotangent=torch.ones(()).expand(4, 12, 8, 10))


def test_large_values_have_a_slope(isa):
    bias = torch.tensor([-1e30, -1e3, -100.0, -90.0, -20.0, 0.0, 20.0, 100.0, 1e30]).requires_grad_()
    with fastdiff.use("cpu"):
        group_norm_silu(torch.zeros(1, 9, 2), 9, torch.zeros(9), bias).sum().backward()
    slope = torch.func.vmap(torch.func.grad(torch.nn.functional.silu))(bias.detach())
    torch.testing.assert_close(bias.grad, 2 * slope, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("groups", [1, 32])
def test_threads_do_not_change_the_result(groups, last):
    inputs, threads = make((2, 64, 48, 40), last=last), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            with fastdiff.use("cpu"):
                results.append(gradients(group_norm_silu, inputs, groups, "silu", inputs[0].detach().cos()))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0]))


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
def test_gradients_of_gradients(last):
    """They go through the reference, also where the first gradient is that of a plain sum."""
    inputs = make((2, 6, 3, 4), last=last)

    def second(backend):
        x, weight, bias, scale, shift = inputs
        with fastdiff.use(backend):
            y = group_norm_silu(x, 3, weight, bias, scale=scale, shift=shift)
            first = torch.autograd.grad(y.sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.sin().sum() for g in first), inputs)

    for ours, theirs in zip(second("cpu"), second("reference")):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_only_what_is_wanted():
    x, weight, bias, scale, shift = make((2, 8, 5, 5))
    with fastdiff.use("cpu"):
        y = group_norm_silu(x.detach(), 4, weight, bias.detach(), scale=scale.detach(), shift=shift)
    y.sum().backward()
    assert [t.grad is not None for t in (x, weight, bias, scale, shift)] == [False, True, False, False, True]


def test_the_registered_operators():
    inputs = make((2, 8, 5, 5))
    x, weight, bias, scale, shift = inputs
    arguments = (x, 4, weight, bias, 1e-5, scale, shift, "silu")
    cotangent = torch.randn(2, 8, 5, 5)
    by_name = torch.autograd.grad(torch.ops.fastdiff.group_norm_silu(*arguments), inputs, cotangent)
    with fastdiff.use("cpu"):
        direct = gradients(group_norm_silu, inputs, 4, "silu", cotangent)
    assert all(torch.equal(a, b) for a, b in zip(by_name, direct))
    plain = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments]
    backward = torch.ops.fastdiff.group_norm_silu_backward
    torch.library.opcheck(backward, (cotangent, *plain))
    torch.library.opcheck(backward, (cotangent, plain[0], 2, None, None, 1e-5, None, None, "none"))
    with pytest.raises(ValueError, match=r"gradient is \(2, 8, 5, 4\)"):
        backward(cotangent[..., :4], *plain)
    with pytest.raises(TypeError, match=r"gradient is torch\.float64"):
        backward(cotangent.double(), *plain)
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        backward(cotangent.double(), plain[0].double(), 4, None, None, 1e-5, None, None, "silu")


def test_compiles_with_gradients():
    x, weight, bias, *_ = make((2, 6, 4, 4))

    def block(x):
        return group_norm_silu(x.sin(), 3, weight, bias).square().sum()

    with fastdiff.use("cpu"):
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
        found, expected = (torch.autograd.grad(f(x), (x, weight, bias)) for f in (compiled, block))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)


def test_torch_runs_where_it_is_faster():
    """A few numbers take less time in torch than our calls."""
    small, large = torch.randn(2, 8, 3, 3, requires_grad=True), torch.randn(2, 64, 64, 64, requires_grad=True)
    assert "few" in faster_in_torch(small, 4)
    assert torch.equal(group_norm_silu(small, 4), reference(small, 4))
    assert faster_in_torch(large, 4) is None
    assert "fastdiff" in type(group_norm_silu(large, 4).grad_fn).__name__
    with torch.no_grad():
        assert faster_in_torch(small, 4) is None
    with fastdiff.use("cpu"):
        assert "fastdiff" in type(group_norm_silu(small, 4).grad_fn).__name__
