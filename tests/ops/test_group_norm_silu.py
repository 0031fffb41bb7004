"""group_norm_silu against float64: every instruction set, type and layout, odd sizes, far means, gradients."""

import itertools

import pytest
import torch
from conftest import assert_no_worse
from torch.autograd import forward_ad

import fastdiff
from fastdiff.ops.group_norm_silu import Arguments, group_norm_silu

reference = group_norm_silu.plain.positional


def supports(*values, **named):
    return group_norm_silu.unsupported(Arguments(*values, **named))


TYPES = (torch.float32, torch.bfloat16, torch.float16)
# (shape, groups): of U-Nets, of the two ways through memory (at least 8 groups, or few), odd ones and one of each part.
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
]
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def make(shape, dtype=torch.float32, *, seed=0, mean=0.0, std=1.0):
    """x, weight, bias, scale, shift."""
    generator = torch.Generator().manual_seed(seed)
    x = mean + std * torch.randn(shape, generator=generator)
    weight, bias = torch.randn(2, shape[1], generator=generator)
    scale, shift = torch.randn(2, *shape[:2], generator=generator)
    return tuple(t.to(dtype) for t in (x, weight, bias, scale, shift))


def check(x, groups, weight=None, bias=None, scale=None, shift=None, activation="silu"):
    """At most twice the error of torch at the same type; the floor is the rounding of the output and of the
    statistics."""
    rest = (weight, bias, 1e-5, scale, shift, activation)
    assert supports(x, groups, *rest) is None
    with fastdiff.use("cpu"):
        ours = group_norm_silu(x, groups, weight, bias, scale=scale, shift=shift, activation=activation)
    theirs = reference(x, groups, *rest)
    oracle = reference(*(t.double() if isinstance(t, torch.Tensor) else t for t in (x, groups, *rest)))
    assert ours.dtype == x.dtype
    assert ours.stride() == theirs.stride()
    size = float(oracle.abs().max()) if oracle.numel() else 0.0
    assert_no_worse(ours, theirs, oracle, floor=size * (torch.finfo(x.dtype).eps + 8 * torch.finfo(torch.float32).eps))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize(("shape", "groups"), CASES)
def test_shapes(isa, shape, groups, last, dtype):
    x, weight, bias, scale, shift = make(shape, dtype)
    if last and x.ndim not in LAYOUTS:
        last = False  # these have no such layout: once more the contiguous one
    x = x.contiguous(memory_format=LAYOUTS[x.ndim]) if last else x
    check(x, groups, weight, bias, scale, shift)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("present", list(itertools.product([False, True], repeat=4)))
@pytest.mark.parametrize("activation", ["silu", "none"])
def test_what_may_be_left_out(isa, present, activation, last):
    x, *rest = make((2, 12, 9, 7))
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    check(x, 4, *(t if there else None for t, there in zip(rest, present)), activation=activation)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize(("mean", "std"), [(1000.0, 1.0), (-30.0, 1e-2), (0.0, 1e-4), (0.0, 1e4), (5.0, 0.0)])
@pytest.mark.parametrize("groups", [2, 16])
def test_far_means_and_scales(isa, groups, mean, std, last):
    x, weight, bias, *_ = make((1, 32, 40, 50), mean=mean, std=std)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    check(x, groups, weight, bias)


def test_means_that_differ_between_channels_and_places(isa):
    """The deviations are then those between blocks, whose statistics are merged."""
    x, weight, bias, *_ = make((2, 16, 64, 48))
    x = x + 100 * torch.arange(16.0)[:, None, None] + torch.linspace(-50, 50, 64)[:, None]
    for layout, groups in itertools.product((torch.contiguous_format, torch.channels_last), (1, 2, 8)):
        check(x.contiguous(memory_format=layout), groups, weight, bias)


def test_every_size(isa):
    for pixels in (*range(1, 70), 1023, 1024, 1025):
        check(torch.randn(1, 6, 1, pixels), 2)
        check(torch.randn(4, 6, 1, pixels), 3)
    for channels in range(1, 70):
        check(torch.randn(1, channels, 3, 5).contiguous(memory_format=torch.channels_last), 1)


def test_views(isa):
    """Neither layout: copied into the contiguous one."""
    x, weight, bias, scale, shift = make((4, 12, 10, 8))
    check(x[::2, :, ::2], 3, weight, bias, scale[::2], shift[::2])
    check(x.transpose(2, 3), 3, weight, bias, scale[..., None, None], shift[..., None, None])


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
    torch.testing.assert_close(y.flatten(), torch.nn.functional.silu(bias), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 32])
def test_threads_do_not_change_the_result(layout, groups):
    x, weight, bias, scale, shift = make((2, 64, 48, 40))
    x, threads = x.contiguous(memory_format=layout), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(group_norm_silu(x, groups, weight, bias, scale=scale, shift=shift))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_opcheck(layout):
    x, weight, bias, scale, shift = (t.clone() for t in make((2, 6, 3, 4)))
    x = x.contiguous(memory_format=layout).requires_grad_()
    weight.requires_grad_()
    torch.library.opcheck(
        torch.ops.fastdiff.group_norm_silu, (x, 3, weight, bias, 1e-5, scale.requires_grad_(), shift, "silu")
    )
    torch.library.opcheck(torch.ops.fastdiff.group_norm_silu, (x, 2, None, None, 1e-5, None, None, "none"))


def test_gradients_are_the_references():
    tensors = [t.clone().requires_grad_() for t in make((2, 12, 5, 6))]

    def gradients(backend):
        x, weight, bias, scale, shift = tensors
        with fastdiff.use(backend):
            y = group_norm_silu(x, 4, weight, bias, scale=scale, shift=shift)
        return torch.autograd.grad((y * y.detach().cos()).sum(), tensors)

    for ours, theirs in zip(gradients("cpu"), gradients("reference")):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradcheck():
    tensors = [t.double().requires_grad_() for t in make((2, 4, 3))]
    assert torch.autograd.gradcheck(
        lambda x, weight, bias, scale, shift: group_norm_silu(x, 2, weight, bias, scale=scale, shift=shift), tensors
    )


def test_compiles_without_a_graph_break():
    x, weight, bias, *_ = make((2, 6, 4, 4))

    def block(x):
        return group_norm_silu(x.sin(), 3, weight, bias) * 2

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x))


def test_what_the_kernel_cannot_take():
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    assert "float64" in supports(x, 2)
    assert torch.equal(group_norm_silu(x, 2), reference(x, 2))
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
    arguments = dict(x=torch.ones(2, 8, 4, 4), num_groups=2) | change
    with pytest.raises(error, match=message):
        group_norm_silu(arguments.pop("x"), arguments.pop("num_groups"), **arguments)
    arguments = dict(x=torch.ones(2, 8, 4, 4), num_groups=2, weight=None, bias=None, eps=1e-5, scale=None, shift=None)
    arguments = arguments | {"activation": "silu"} | change
    with pytest.raises(error, match=message):
        torch.ops.fastdiff.group_norm_silu(*arguments.values())
