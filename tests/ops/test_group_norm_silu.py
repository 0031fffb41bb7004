"""group_norm_silu against float64: every instruction set, type and layout, odd sizes, far means, gradients."""

import itertools

import pytest
import torch
from operators import TYPES, check_results, check_threads, gradients, unsupported
from ops.group_norm_cases import CASES, LAST, ROUNDINGS, VECTORS
from torch.autograd import forward_ad

import fastdiff
from fastdiff.bench.cases.group_norm_silu import ADAPTIVE, make
from fastdiff.ops import group_norm_silu


def check(inputs):
    assert unsupported(group_norm_silu, **inputs) is None
    x = inputs["x"]
    (y,) = check_results(group_norm_silu, inputs, terms=x[:1].numel() // inputs["num_groups"])
    assert y.stride() == group_norm_silu.plain(**inputs).stride()


def alone(x, groups):
    """Nothing but x."""
    return dict(x=x, num_groups=groups)


@pytest.mark.parametrize("dtype", TYPES)
@LAST
@pytest.mark.parametrize(("shape", "groups"), CASES)
def test_shapes(isa, shape, groups, last, dtype):
    # Without such a layout: once more the contiguous one.
    check(make(shape, dtype, groups=groups, channels_last=last and len(shape) in (4, 5)))


@LAST
@pytest.mark.parametrize("present", list(itertools.product([False, True], repeat=4)))
@pytest.mark.parametrize("activation", ["silu", None])
def test_what_may_be_left_out(isa, present, activation, last):
    left_out = [name for name, there in zip(VECTORS, present) if not there]
    check(make((2, 12, 9, 7), groups=4, channels_last=last, left_out=left_out) | {"activation": activation})


@LAST
@pytest.mark.parametrize(("mean", "std"), [(1000.0, 1.0), (-30.0, 1e-2), (0.0, 1e-4), (0.0, 1e4), (5.0, 0.0)])
@pytest.mark.parametrize("groups", [2, 16])
def test_far_means_and_scales(isa, groups, mean, std, last):
    check(make((1, 32, 40, 50), groups=groups, channels_last=last, mean=mean, std=std, left_out=ADAPTIVE))


def test_means_that_differ_between_channels_and_places(isa):
    """The deviations are then those between blocks, whose statistics are merged."""
    given = make((2, 16, 64, 48), left_out=ADAPTIVE)
    x = given["x"] + 100 * torch.arange(16.0)[:, None, None] + torch.linspace(-50, 50, 64)[:, None]
    for layout, groups in itertools.product((torch.contiguous_format, torch.channels_last), (1, 2, 8)):
        check(given | alone(x.contiguous(memory_format=layout), groups))


def test_every_size(isa):
    for pixels in (*range(1, 70), 1023, 1024, 1025):
        check(alone(torch.randn(1, 6, 1, pixels), 2))
        check(alone(torch.randn(4, 6, 1, pixels), 3))
    for channels in range(1, 70):
        check(alone(torch.randn(1, channels, 3, 5).contiguous(memory_format=torch.channels_last), 1))


def test_views(isa):
    """Neither layout: copied into the contiguous one."""
    given = make((4, 12, 10, 8), groups=3)
    x, scale, shift = (given[name] for name in ("x", "scale", "shift"))
    check(given | dict(x=x[::2, :, ::2], scale=scale[::2], shift=shift[::2]))
    check(given | dict(x=x.transpose(2, 3), scale=scale[..., None, None], shift=shift[..., None, None]))


def test_nan_stays_in_its_group(isa):
    x = torch.randn(2, 16, 5, 5)
    x[1, 3, 2, 2] = float("nan")
    with fastdiff.use("cpu"):
        for layout in (torch.contiguous_format, torch.channels_last):
            bad = group_norm_silu(x.contiguous(memory_format=layout), 8).isnan().flatten(2).any(2)
            assert bad.nonzero().tolist() == [[1, 2], [1, 3]]


def test_silu_of_large_values(isa):
    x = torch.tensor([[-1e30, -1e3, -100.0, -90.0, -88.0, -20.0, 0.0, 20.0, 100.0, 1e30]])
    x = x.repeat(1, 2)[:, :, None]
    bias = x.flatten()
    with fastdiff.use("cpu"):
        y = group_norm_silu(torch.zeros_like(x), 20, torch.zeros(20), bias)
    torch.testing.assert_close(y.flatten(), torch.nn.functional.silu(bias), rtol=ROUNDINGS, atol=1e-30)


@LAST
@pytest.mark.parametrize("groups", [1, 32])
def test_threads_do_not_change_the_result(last, groups):
    inputs = make((2, 64, 48, 40), groups=groups, channels_last=last)
    check_threads(lambda: group_norm_silu(**inputs))


@LAST
def test_opcheck(last):
    x, _, weight, bias, scale, shift = make((2, 6, 3, 4), channels_last=last).values()
    x, weight, scale = (t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, weight, scale))
    operator = torch.ops.fastdiff.group_norm_silu
    torch.library.opcheck(operator, (x, 3, weight, bias.clone(), 1e-5, scale, shift.clone(), "silu"))
    torch.library.opcheck(operator, (x, 2, None, None, 1e-5, None, None, "none"))


def test_gradcheck():
    x, _, *vectors = make((2, 4, 3), torch.float64).values()
    assert torch.autograd.gradcheck(
        lambda x, *vectors: group_norm_silu(x, 2, **dict(zip(VECTORS, vectors))),
        [t.requires_grad_() for t in (x, *vectors)],
    )


def test_compiles_without_a_graph_break():
    given = make((2, 6, 4, 4), groups=3, left_out=ADAPTIVE)

    def block(x):
        return group_norm_silu(**given | {"x": x.sin()}) * 2

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(given["x"]), block(given["x"]))


def test_what_the_kernel_cannot_take():
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    assert "float64" in unsupported(group_norm_silu, x, 2)
    assert torch.equal(group_norm_silu(x, 2), group_norm_silu.plain(x, 2))
    with fastdiff.use("cpu"), pytest.raises(NotImplementedError, match="float64"):
        group_norm_silu(x, 2)
    with forward_ad.dual_level():
        y = group_norm_silu(forward_ad.make_dual(x.float(), torch.ones(2, 6, 3)), 2)
        assert forward_ad.unpack_dual(y).tangent is not None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(x=torch.ones(8)), ValueError, r"x must be \(N, C, ...\), got \(8,\)"),
        (dict(num_groups=3), ValueError, r"num_groups must divide the channels of x \(2, 8, 4, 4\), got 3"),
        (dict(num_groups=0), ValueError, "num_groups must divide"),
        (dict(x=torch.ones(2, 8, 0, 4)), ValueError, "no pixels"),
        (dict(weight=torch.ones(7)), ValueError, r"weight is \(7,\), expected \(8,\)"),
        (dict(scale=torch.ones(2, 7)), ValueError, r"scale is \(2, 7\), expected \(2, 8\) or \(2, 8, 1, 1\)"),
        (dict(shift=torch.ones(1, 8)), ValueError, "shift is"),
        (dict(activation="relu"), ValueError, "unknown activation 'relu'"),
        (dict(bias=torch.ones(8).half()), TypeError, r"bias is torch\.float16, x is torch\.float32"),
    ],
)
def test_bad_input(change, error, message):
    for function in (group_norm_silu, torch.ops.fastdiff.group_norm_silu):
        with pytest.raises(error, match=message):
            function(**alone(torch.ones(2, 8, 4, 4), 2) | change)


@pytest.mark.parametrize("last", [(True, True), (False, False), (True, False)])
def test_two_tensors_are_one_concatenated(last):
    given = make((2, 12, 5, 3), groups=3)
    x, skip = (t.contiguous() for t in given["x"].split([5, 7], 1))
    layouts = [torch.channels_last if each else torch.contiguous_format for each in last]
    x, skip = (t.contiguous(memory_format=layout) for t, layout in zip((x, skip), layouts))
    both = torch.cat((x, skip), 1).contiguous(memory_format=layouts[1])
    one = group_norm_silu(**given | {"x": both})
    two = group_norm_silu(**given | {"x": (x, skip)})
    assert torch.equal(one, two)
    assert two.is_contiguous(memory_format=torch.channels_last) == all(last)
    three = group_norm_silu(**given | {"x": list(both.split(4, 1))})
    torch.testing.assert_close(three, one, rtol=1e-5, atol=1e-5)
    directions = [torch.randn(2, 12, 5, 3)]
    theirs = gradients(group_norm_silu, given | {"x": both}, directions)
    for backend in ("auto", "cpu"):
        leaves = [t.detach().requires_grad_() for t in (x, skip)]
        with fastdiff.use(backend):
            ours = torch.autograd.grad(group_norm_silu(**given | {"x": leaves}), leaves, directions)
        torch.testing.assert_close(torch.cat(ours, 1), theirs["x"], rtol=1e-5, atol=1e-5)
    weight = given["weight"].clone().requires_grad_()
    operator = torch.ops.fastdiff.group_norm_silu
    torch.library.opcheck(operator, (leaves[0], 3, weight, given["bias"], 1e-5, None, None, "silu", leaves[1]))


def test_two_tensors_that_do_not_fit():
    x = torch.ones(2, 8, 4, 4)
    with pytest.raises(ValueError, match=r"the second x is \(2, 4, 4, 3\), expected \(2, 4, 4, 4\)"):
        group_norm_silu((x, torch.ones(2, 4, 4, 3)), 2)
    with pytest.raises(ValueError, match="or several of them, got none"):
        group_norm_silu((), 2)
    with pytest.raises(ValueError, match=r"num_groups must divide"):
        group_norm_silu((x, x[:, :3]), 2)
