"""Results do not depend on the order in which program instances run: the same bits for any."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl
from conv2d import TILES
from group_norm_silu import parts, small_rows, small_runs
from torch import Tensor
from triton.runtime import interpreter

import fastdiff
from fastdiff import ops
from fastdiff.bench import cases
from fastdiff.kernels.add_group_norm_silu import add_group_norm_silu
from fastdiff.kernels.attention import attention_backward, attention_forward
from fastdiff.kernels.attention.few_keys import attention_few_keys
from fastdiff.kernels.attention.tiles import Tile
from fastdiff.kernels.conv2d import conv2d
from fastdiff.kernels.group_norm_silu import group_norm_silu, group_norm_silu_backward
from fastdiff.kernels.launching import launch
from fastdiff.kernels.linear import linear
from fastdiff.kernels.pointwise import add_bias, gated, interleave, phases

ORDERS: dict[str, Callable[[int, int], int]] = {
    "in order": lambda at, count: at,
    "from the last": lambda at, count: count - 1 - at,
    "mixed": lambda at, count: at * next((n for n in (7, 5, 3) if math.gcd(n, count) == 1 != n % count), 1) % count,
}


@contextmanager
def in_order(order: Callable[[int, int], int]) -> Iterator[None]:
    """The interpreter's program instances, of all three dimensions together, run so."""
    builder = interpreter.interpreter_builder
    set_place = builder.set_grid_idx

    def place(x: int, y: int, z: int) -> None:
        _, down, deep = builder.grid_dim
        at = order((x * down + y) * deep + z, math.prod(builder.grid_dim))
        set_place(at // (down * deep), at // deep % down, at % deep)

    with mock.patch.object(builder, "set_grid_idx", place):
        yield


def assert_same(run: Callable[[], Any], *what: object) -> None:
    """The same bits, all of them finite, in every order."""
    found = []
    for order in ORDERS.values():
        with in_order(order):
            made = run()
        made = list(made.values()) if isinstance(made, dict) else cases.results(made)
        found.append([t for t in made if t is not None])
    for first, *others in zip(*found, strict=True):
        assert first.isfinite().all(), what
        assert all(torch.equal(first, other) for other in others), what


@triton.jit
def last_kernel(out):
    tl.store(out, tl.program_id(0) + 10 * tl.program_id(1))


def _last(grid: tuple[int, int]) -> int:
    out = torch.zeros(1)
    launch(last_kernel, grid, out=out)
    return int(out)


def operators() -> None:
    """All operators with a Triton kernel, and their gradients."""
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    found = []
    for order in ORDERS.values():
        with in_order(order):
            found.append(_last((3, 3)))
    assert found == [22, 0, 20], found  # so the orders are not the same
    for name in ops.TRITON_OPS:
        for case in cases.of(name, "gpu-small"):
            if case.dtype is not torch.bfloat16:
                assert_same(partial(_called, name, case), name, str(case))


@fastdiff.use("triton")
def _called(name: str, case: cases.Case) -> list[Tensor]:
    """The results, and the gradients of their squares, where the operator has some."""
    torch.manual_seed(0)
    op: Any = ops.OPS[name]
    given = case.make()
    if name == "linear_combine":
        return cases.results(op(**given))
    given = cases.wanting_gradients(given)
    results = cases.results(op(**given))
    leaves = [t for t in cases.tensors(given) if t.requires_grad]
    return [*results, *torch.autograd.grad(sum(y.float().square().sum() for y in results), leaves)]


def sums_in_parts() -> None:
    """What several instances sum up, by plans and tiles that calls take for large tensors."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    last = torch.channels_last
    x, grad = (torch.randn(2, 12, 5, 7) for _ in range(2))
    vector = torch.randn(12)
    for cut in small_rows(2, 3, 4, 35):
        run = partial(group_norm_silu, x.contiguous(memory_format=last), 3, vector, vector, cut=cut)
        assert_same(run, cut)
        run = partial(add_group_norm_silu, x.contiguous(memory_format=last), 3, vector, None, grad, cut=cut)
        assert_same(run, cut)
    for flat in small_runs(2, 3, 4 * 35, 35):
        assert_same(partial(group_norm_silu, x, 3, vector, vector, cut=flat), flat)
    assert_same(partial(group_norm_silu, x, 3, vector, vector, cut=parts(x)))
    assert_same(partial(group_norm_silu_backward, grad, x, 3, vector, vector, cut=parts(x)))

    q, k, v, of_out = (torch.randn(1, 2, n, 16) for n in (40, 50, 50, 40))
    tile = Tile(16, 16, 4, 2)
    out, lse = attention_forward(q, k, v, tile=tile, splits=3)
    assert_same(partial(attention_forward, q, k, v, tile=tile, splits=3))
    options: dict[str, Any] = dict(tile_dq=tile, tile_dkv=tile, splits=2)
    assert_same(partial(attention_backward, of_out, q, k, v, out, lse, **options))
    assert_same(partial(attention_few_keys, *(t.half() for t in (q, k, v))))

    image, weight = x.contiguous(memory_format=last), torch.randn(9, 12, 3, 3)
    for tile_of_conv, followed in itertools.product(TILES, (False, True)):
        options = dict(bias=vector[:9], activation="silu") if followed else {}
        assert_same(partial(conv2d, image, weight, tile=tile_of_conv, **options), tile_of_conv)
    summed = phases(weight)
    assert_same(partial(phases, weight))
    assert_same(partial(conv2d, image, summed, vector[:9], phases=True, tile=TILES[1]))
    assert_same(partial(interleave, torch.randn(1, 12, 4, 5).contiguous(memory_format=last), vector[:3]))
    assert_same(lambda: add_bias(x.clone(), vector, torch.ones(2, 12), grad, "silu"))
    assert_same(partial(gated, torch.randn(9, 66), "gelu"))
    for rows in (1, 40):
        assert_same(partial(linear, torch.randn(2, rows, 24), torch.randn(40, 24), torch.randn(40), activation="gelu"))
