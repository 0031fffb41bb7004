"""residual_ada_layer_norm against float64: every instruction set and type, odd sizes, the views of chunk(6), what may
be left out."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_no_worse

from fastdiff.ops.ada_layer_norm import ada_layer_norm
from fastdiff.ops.registration import TYPES
from fastdiff.runtime.native import core

# (B, S, C): sizes of DiT and of nothing in particular; a row that fills no vector, one of several, and empty ones.
SHAPES = [(2, 256, 1152), (1, 3, 1), (2, 5, 7), (3, 1, 16), (1, 4, 63), (2, 3, 130), (1, 2, 1000), (0, 4, 8), (2, 0, 8)]
OPTIONAL = ("gate", "scale", "shift", "weight", "bias")


def make(shape, dtype=torch.float32, *, seed=0, per_row=False, mean=0.0, std=1.0, left_out=()):
    """All arguments, by name; those of a batch as the views of one chunk(6), as DiT makes them."""
    generator = torch.Generator().manual_seed(seed)
    batch, rows, channels = shape
    y, residual = (mean * k + std * torch.randn(shape, generator=generator) for k in (0, 1))
    table = torch.randn(batch, rows if per_row else 1, 6 * channels, generator=generator).to(dtype)
    gate, scale, shift = table.chunk(6, dim=-1)[2:5]
    weight, bias = torch.randn(2, channels, generator=generator).to(dtype)
    given = dict(
        y=y.to(dtype), residual=residual.to(dtype), gate=gate, scale=scale, shift=shift, weight=weight, bias=bias
    )
    return given | dict.fromkeys(left_out)


def reference(y, residual, gate, scale, shift, weight, bias):
    """h and z in plain PyTorch."""
    h = residual + (y if gate is None else gate * y)
    return h, normalize(h, scale, shift, weight, bias)


def normalize(h, scale, shift, weight, bias):
    z = F.layer_norm(h, h.shape[-1:], weight, bias, 1e-6)
    z = z if scale is None else z * (1 + scale)
    return z if shift is None else z + shift


def rows(tensor):
    if tensor is None:
        return 0, 0, 0
    assert tensor.stride(2) == 1 or tensor.shape[2] == 1
    return tensor.data_ptr(), tensor.stride(0), tensor.stride(1) if tensor.shape[1] > 1 else 0


def kernel(y, residual, gate, scale, shift, weight, bias):
    h, z = torch.full((2, *y.shape), torch.nan, dtype=y.dtype)
    vectors = [0 if t is None else t.data_ptr() for t in (weight, bias)]
    given = [rows(t) for t in (y, residual, gate, scale, shift)]
    core.residual_ada_layer_norm(
        TYPES[y.dtype], h.data_ptr(), z.data_ptr(), *given, *vectors, *y.shape, 1e-6, torch.get_num_threads()
    )
    return h, z


def wide(given):
    return {name: None if t is None else t.detach().double() for name, t in given.items()}


def check(given):
    """At most twice the error of torch at the same type; z is what the norm makes of h as it is stored. The floor is
    the rounding of the output and of the statistics."""
    (h, z), (theirs_h, theirs_z) = kernel(**given), reference(**given)
    exact_h, _ = reference(**wide(given))
    norm = {name: given[name] for name in ("scale", "shift", "weight", "bias")}
    exact_z, stored_z = normalize(h.double(), **wide(norm)), normalize(h, **norm)
    for ours, theirs, oracle in ((h, theirs_h, exact_h), (z, stored_z, exact_z)):
        size = float(oracle.abs().max()) if oracle.numel() else 0.0
        floor = size * (torch.finfo(ours.dtype).eps + 4 * torch.finfo(torch.float32).eps)
        assert_no_worse(ours, theirs, oracle, floor=floor)
    assert theirs_z.shape == z.shape
    if None not in (given["scale"], given["shift"]):
        one_by_one = ada_layer_norm(h, given["scale"], given["shift"], weight=given["weight"], bias=given["bias"])
        assert torch.equal(z, one_by_one)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(isa, shape, dtype):
    check(make(shape, dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("per_row", [False, True])
def test_what_may_be_left_out(isa, dtype, per_row):
    for there in itertools.product([False, True], repeat=len(OPTIONAL)):
        left_out = [name for name, given in zip(OPTIONAL, there) if not given]
        if "weight" not in left_out or "bias" in left_out:
            check(make((2, 5, 77), dtype, per_row=per_row, left_out=left_out))


@pytest.mark.parametrize(("mean", "std"), [(1000.0, 1.0), (-30.0, 1e-2), (0.0, 1e-4), (0.0, 1e4), (5.0, 0.0)])
def test_far_means_and_scales(isa, mean, std):
    check(make((2, 9, 640), mean=mean, std=std))


def test_every_size(isa):
    """Tails: nothing beyond the row is read into the statistics, every value is written and no other."""
    for channels in range(1, 70):
        check(make((1, 2, channels), seed=channels))


def test_views(isa):
    """Rows with strides and batches with strides."""
    given = make((4, 12, 64))
    halves = {name: given[name][::2] for name in ("gate", "scale", "shift")}
    check(given | halves | dict(y=given["y"][::2, ::3], residual=given["residual"][1::2, 2::3]))
    swapped = {name: given[name][:1].expand(12, 1, 64) for name in ("gate", "scale", "shift")}
    check(given | swapped | {name: given[name].transpose(0, 1) for name in ("y", "residual")})


def test_mixed_rows(isa):
    """One of gate, scale and shift has rows of its own."""
    given, per_row = make((2, 5, 33)), make((2, 5, 33), per_row=True)
    for name in ("gate", "scale", "shift"):
        check(given | {name: per_row[name]})


def test_threads_do_not_change_the_result():
    given, threads = make((2, 256, 1152)), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(torch.stack(kernel(**given)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", TYPES)
def test_large_results_which_are_written_around_the_caches(isa, dtype):
    rows, channels = 2049 if dtype is torch.float32 else 4097, 12288  # a bit more than 96 MiB
    given = make((1, 1, channels), dtype)
    large = {name: given[name].expand(1, rows, channels) for name in ("y", "residual")}
    for many, one in zip(kernel(**given | large), kernel(**given)):
        assert torch.equal(many, one.expand_as(many))
