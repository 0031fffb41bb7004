"""add_group_norm_silu on the CPU: PyTorch's additions and group_norm_silu's kernel, against float64; gradients,
layouts, what may be left out, errors."""

import itertools

import pytest
import torch
from conftest import assert_no_worse, floor
from operators import TYPES, gradients, unsupported

import fastdiff
from fastdiff.bench.cases import wide
from fastdiff.bench.cases.add_group_norm_silu import ADAPTIVE, BEFORE, make
from fastdiff.ops import add_group_norm_silu, group_norm_silu

NORM = ("num_groups", "weight", "bias", "scale", "shift")
SHAPES = [((2, 32, 9, 7), 4), ((1, 6, 5), 3), ((2, 8), 2), ((2, 6, 3, 4, 2), 3), ((0, 4, 2, 2), 2)]


def check(given):
    """h errs at most twice as much as PyTorch's additions, z as PyTorch's norm of the h that is stored."""
    h, z = add_group_norm_silu(**given)
    with fastdiff.use("reference"):
        theirs, other = add_group_norm_silu(**given)
        exact, _ = add_group_norm_silu(**wide(given))
    assert_no_worse(h, theirs, exact, floor=floor(exact, h.dtype))
    assert h.stride() == theirs.stride()
    assert z.stride() == other.stride()
    norm = {name: given[name] for name in NORM}
    oracle = group_norm_silu.plain(h.double(), **wide(norm))
    terms = h[:1].numel() // given["num_groups"]
    assert_no_worse(z, group_norm_silu.plain(h, **norm), oracle, floor=floor(oracle, h.dtype, terms))
    assert torch.equal(z, group_norm_silu(h, **norm))
    return h


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_shapes(shape, groups, channels_last, dtype):
    check(make(shape, dtype, groups=groups, channels_last=channels_last, mean=10.0))


@pytest.mark.parametrize("there", list(itertools.product([False, True], repeat=3)))
def test_what_may_be_left_out(there):
    given = make((2, 8, 5, 3), groups=2, left_out=[name for name, one in zip(BEFORE, there) if not one])
    h = check(given)
    assert h.data_ptr() != given["x"].data_ptr()
    check(given | dict.fromkeys(("weight", "bias", *ADAPTIVE)))


def test_per_channel_tensors_may_have_pixels():
    given = make((2, 8, 5, 3), groups=2)
    wider = {name: given[name][..., None, None] for name in ("channel_bias", *ADAPTIVE)}
    for one, other in zip(add_group_norm_silu(**given), add_group_norm_silu(**given | wider)):
        assert torch.equal(one, other)


def test_gradients():
    given = make((2, 8, 4, 3), torch.float64, groups=2)
    leaves = [t.requires_grad_() for t in given.values() if isinstance(t, torch.Tensor)]
    names = [name for name, t in given.items() if isinstance(t, torch.Tensor)]

    def function(*tensors):
        return add_group_norm_silu(**given | dict(zip(names, tensors)))

    torch.autograd.gradcheck(function, leaves)
    single = make((2, 8, 4, 3), groups=2)
    cotangents = [torch.randn(2, 8, 4, 3).to(memory_format=torch.channels_last) for _ in range(2)]
    ours = gradients(add_group_norm_silu, single, cotangents)
    with fastdiff.use("reference"):
        theirs = gradients(add_group_norm_silu, single, cotangents)
        exact = gradients(add_group_norm_silu, wide(single), [t.double() for t in cotangents])
    for name, oracle in exact.items():
        assert_no_worse(ours[name], theirs[name], oracle, floor=floor(oracle, torch.float32, 96))


def test_in_compiled_code():
    given = make((2, 8, 4, 3), groups=2)

    def block(x):
        h, z = add_group_norm_silu(**given | {"x": x.sin()})
        return h * 2 + z

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(given["x"]), block(given["x"]), rtol=1e-6, atol=1e-6)


def test_who_computes():
    given = make((2, 8, 4, 3), groups=2)
    assert "conv2d and group_norm_silu do it" in unsupported(add_group_norm_silu, **given)
    with fastdiff.use("cpu"), pytest.raises(NotImplementedError, match="no C\\+\\+ kernel"):
        add_group_norm_silu(**given)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(num_groups=3), ValueError, "num_groups must divide"),
        (dict(conv_bias=torch.ones(7)), ValueError, r"conv_bias is \(7,\), expected \(8,\)"),
        (dict(channel_bias=torch.ones(1, 8)), ValueError, r"channel_bias is \(1, 8\), expected \(2, 8\)"),
        (dict(residual=torch.ones(2, 8, 4, 3)), ValueError, r"residual is \(2, 8, 4, 3\), expected \(2, 8, 4, 4\)"),
        (dict(residual=torch.ones(2, 8, 4, 4).half()), TypeError, r"residual is torch\.float16, x is torch\.float32"),
        (dict(activation="relu"), ValueError, "unknown activation 'relu'"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        add_group_norm_silu(**dict(x=torch.ones(2, 8, 4, 4), num_groups=2) | change)
