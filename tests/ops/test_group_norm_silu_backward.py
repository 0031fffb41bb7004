"""Gradients of group_norm_silu's own kernel against float64: instruction sets, types, layouts, and when it is used."""

import math

import pytest
import torch
from operators import TYPES, check_gradients, check_threads, gradients, slower
from ops.group_norm_cases import CASES, LAST, ROUNDINGS, VECTORS

import fastdiff
from fastdiff.bench.cases import tensors, wanting_gradients
from fastdiff.bench.cases.group_norm_silu import ADAPTIVE, make
from fastdiff.ops import group_norm_silu

# Beside those of the forward: groups beyond the cache.
ALL_CASES = [*CASES, ((1, 8, 370, 371), 8)]


def check(inputs, cotangent=None):
    """Gradients of vectors are sums over pixels, that of x over a group. What they are sums or differences of may
    cancel: the cotangent times the factors of the normalized numbers; for the gradient of x over the deviations."""
    x, groups = inputs["x"], inputs["num_groups"]
    if cotangent is None:
        cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    sizes = {}
    if x.numel():
        factors = [cotangent, *(t + n for n, t in ((0, inputs["weight"]), (1, inputs["scale"])) if t is not None)]
        largest = math.prod(float(t.double().abs().max()) for t in factors)
        variance = x.double().contiguous().view(x.shape[0] * groups, -1).var(dim=1, correction=0)
        sizes = dict.fromkeys(VECTORS, largest) | {"x": largest * float(variance.min() + 1e-5) ** -0.5}
    check_gradients(group_norm_silu, inputs, cotangent, x.numel() // groups, sizes)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("shape", "groups"), ALL_CASES)
def test_shapes(isa, shape, groups, dtype):
    for last in (False, True)[: 2 if len(shape) in (4, 5) else 1]:
        check(make(shape, dtype, groups=groups, channels_last=last))


@LAST
@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("left_out", [ADAPTIVE, ("weight", "bias"), ("bias", "scale"), ("shift",), VECTORS])
def test_what_may_be_left_out(isa, left_out, activation, last):
    for groups in (3, 4):
        given = make((2, 12, 9, 7), groups=groups, channels_last=last, left_out=left_out)
        check(given | {"activation": activation})


@LAST
@pytest.mark.parametrize(("mean", "std"), [(1000.0, 1.0), (-30.0, 1e-2), (0.0, 1e-4), (0.0, 1e4)])
def test_far_means_and_scales(isa, mean, std, last):
    for groups in (2, 16):
        check(make((1, 32, 40, 30), groups=groups, mean=mean, std=std, channels_last=last))


def test_every_size(isa):
    for pixels in (*range(1, 40), 1023, 1024, 1025):
        check(make((1, 6, 1, pixels), groups=2))
        check(make((4, 6, 1, pixels), groups=3))
    for channels in range(1, 40):
        check(make((1, channels, 3, 5), groups=1, channels_last=True))


def test_views(isa):
    """x and the gradient in another layout than the result, and a gradient without memory of its own."""
    given = make((4, 12, 10, 8), groups=3)
    views = {name: given[name][..., None, None] for name in ADAPTIVE} | {"x": given["x"].transpose(2, 3)}
    check(given | views, torch.randn(4, 8, 10, 12).movedim(3, 1))
    check(given | views, torch.ones(()).expand(4, 12, 8, 10))


def test_large_values_have_a_slope(isa):
    bias = torch.tensor([-1e30, -1e3, -100.0, -90.0, -20.0, 0.0, 20.0, 100.0, 1e30]).requires_grad_()
    with fastdiff.use("cpu"):
        group_norm_silu(torch.zeros(1, 9, 2), 9, torch.zeros(9), bias).sum().backward()
    slope = torch.func.vmap(torch.func.grad(torch.nn.functional.silu))(bias.detach())
    torch.testing.assert_close(bias.grad, 2 * slope, rtol=ROUNDINGS, atol=1e-30)


@LAST
@pytest.mark.parametrize("groups", [1, 32])
def test_threads_do_not_change_the_result(groups, last):
    inputs = make((2, 64, 48, 40), groups=groups, channels_last=last)
    with fastdiff.use("cpu"):
        check_threads(lambda: gradients(group_norm_silu, inputs, [inputs["x"].cos()]).values())


@LAST
def test_gradients_of_gradients(last):
    """They go through the reference, also where the first gradient is that of a plain sum."""

    def second(inputs):
        inputs = wanting_gradients(inputs)
        first = torch.autograd.grad(group_norm_silu(**inputs).sum(), tensors(inputs), create_graph=True)
        return torch.autograd.grad(sum(g.sin().sum() for g in first), tensors(inputs))

    given = make((2, 6, 3, 4), groups=3, channels_last=last)
    with fastdiff.use("cpu"):
        ours = second(given)
    with fastdiff.use("reference"):
        theirs = second(given)
    assert all(map(torch.equal, ours, theirs))


def test_only_what_is_wanted():
    inputs = make((2, 8, 5, 5), groups=4)
    for name in ("weight", "shift"):
        inputs[name].requires_grad_()
    with fastdiff.use("cpu"):
        group_norm_silu(**inputs).sum().backward()
    assert [t.grad is not None for t in tensors(inputs)] == [False, True, False, False, True]


def test_the_registered_operators():
    inputs = make((2, 8, 5, 5), groups=4)
    leaves = wanting_gradients(inputs)
    cotangent = torch.randn(2, 8, 5, 5)
    y = torch.ops.fastdiff.group_norm_silu(**leaves)
    by_name = torch.autograd.grad(y, tensors(leaves), cotangent)
    with fastdiff.use("cpu"):
        direct = gradients(group_norm_silu, inputs, [cotangent]).values()
    assert all(torch.equal(a, b) for a, b in zip(by_name, direct))
    plain = list(group_norm_silu.arguments(**inputs))
    backward = torch.ops.fastdiff.group_norm_silu_backward
    torch.library.opcheck(backward, (cotangent, *plain))
    torch.library.opcheck(backward, (cotangent, plain[0], 2, None, None, 1e-5, None, None, "none", None))
    with pytest.raises(ValueError, match=r"gradient is \(2, 8, 5, 4\)"):
        backward(cotangent[..., :4], *plain)
    with pytest.raises(TypeError, match=r"gradient is torch\.float64"):
        backward(cotangent.double(), *plain)
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        backward(cotangent.double(), plain[0].double(), 4, None, None, 1e-5, None, None, "silu", None)


def test_compiles_with_gradients():
    inputs = wanting_gradients(make((2, 6, 4, 4), groups=3, left_out=ADAPTIVE))

    def block(x):
        return group_norm_silu(**inputs | {"x": x.sin()}).square().sum()

    with fastdiff.use("cpu"):
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
        found, expected = (torch.autograd.grad(f(inputs["x"]), tensors(inputs)) for f in (compiled, block))
    assert all(map(torch.equal, found, expected))


def test_torch_runs_where_it_is_faster():
    """A few numbers take less time in torch than our calls."""
    small, large = torch.randn(2, 8, 3, 3, requires_grad=True), torch.randn(2, 64, 64, 64, requires_grad=True)
    assert "few" in slower(group_norm_silu, small, 4)
    assert torch.equal(group_norm_silu(small, 4), group_norm_silu.plain(small, 4))
    assert slower(group_norm_silu, large, 4) is None
    assert "fastdiff" in type(group_norm_silu(large, 4).grad_fn).__name__
    with torch.no_grad():
        assert slower(group_norm_silu, small, 4) is None
    with fastdiff.use("cpu"):
        assert "fastdiff" in type(group_norm_silu(small, 4).grad_fn).__name__
