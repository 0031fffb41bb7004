"""The kernel of convolutions: numbers in the interpreter, tiles, candidates, compilation ahead of time."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from checks import assert_fits, assert_no_worse
from torch import Tensor

from fastdiff.kernels.ahead_of_time.compile import TARGETS
from fastdiff.kernels.conv2d import Tile, conv2d, tiles
from fastdiff.kernels.conv2d.forward import size_of
from fastdiff.kernels.pointwise import phases as sums_of_weights
from fastdiff.runtime.device import Device

DTYPES = (torch.float32, torch.float16)
SINGLE = torch.finfo(torch.float32).eps
TILES = Tile(16, 16, 16, 4, 1), Tile(32, 16, 32, 4, 1, 3)
FOLLOWING = list(itertools.product([False, True], repeat=4))  # bias, channel_bias, residual, activation


def rounded_once(x: Tensor, weight: Tensor, **options) -> Tensor:
    """PyTorch's convolution, in float32 for halves, as cuDNN sums; on the CPU parts of sums are rounded."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.conv2d(x.to(wide), weight.to(wide), **options).to(x.dtype)


def followed(y: Tensor, bias, channel_bias, residual, activation) -> Tensor:
    y = y if bias is None else y + bias[:, None, None]
    y = y if channel_bias is None else y + channel_bias[:, :, None, None]
    y = y if residual is None else y + residual
    return F.silu(y) if activation else y


def given(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    """A feature map: "last", "first", or a part of a larger one, with strides of neither."""
    if layout == "part":
        n, c, height, width = shape
        return torch.randn(n, c + 3, height, 2 * width).to(dtype)[:, 2 : c + 2, :, ::2]
    form = torch.channels_last if layout == "last" else torch.contiguous_format
    return torch.randn(shape).to(dtype).contiguous(memory_format=form)


def numbers() -> None:
    torch.manual_seed(0)
    cases = [  # x, channels of the second image, outputs, taps, stride, padding
        ((2, 5, 7, 6), 0, 9, (3, 3), 1, 1), ((1, 70, 5, 4), 0, 33, (3, 3), 2, 1), ((2, 32, 3, 3), 0, 8, (1, 1), 1, 0),
        ((1, 64, 9, 1), 0, 40, (1, 1), 2, 0), ((1, 8, 4, 5), 0, 6, (1, 3), 1, 1), ((2, 3, 3, 4), 0, 5, (3, 3), 1, 0),
        ((1, 32, 4, 4), 64, 17, (3, 3), 1, 1), ((2, 20, 3, 5), 7, 16, (1, 1), 1, 0), ((1, 1, 1, 1), 1, 1, (3, 3), 2, 1),
    ]  # fmt: skip
    layouts = itertools.cycle(["last", "first", "part", "last"])
    for number, (case, dtype, tile) in enumerate(itertools.product(cases, DTYPES, TILES)):
        shape, more, outputs, taps, stride, padding = case
        channels = shape[1] + more
        x, skip = given(shape, dtype, next(layouts)), None
        if more:
            skip = given((shape[0], more, *shape[2:]), dtype, next(layouts))
        whole = x if skip is None else torch.cat((x, skip), 1)
        std = (channels * math.prod(taps)) ** -0.5
        weight = given((outputs, channels, *taps), dtype, next(layouts)) * std
        theirs = rounded_once(whole, weight, stride=stride, padding=padding)
        exact = F.conv2d(whole.double(), weight.double(), stride=stride, padding=padding)
        vectors = torch.randn(outputs).to(dtype), torch.randn(shape[0], 2 * outputs)[:, ::2].to(dtype)
        for there in (FOLLOWING[number % 16], FOLLOWING[-1 - number % 16]):
            tensors = [t if wanted else None for t, wanted in zip((*vectors, given(exact.shape, dtype, "last")), there)]
            wide = [None if t is None else t.double() for t in tensors]
            activation = "silu" if there[3] else None
            ours = conv2d(
                x, weight, tensors[0], skip=skip, stride=stride, padding=padding, channel_bias=tensors[1],
                residual=tensors[2], activation=activation, tile=tile,
            )  # fmt: skip
            assert ours.is_contiguous(memory_format=torch.channels_last)
            right = followed(exact, *wide, activation)
            floor = float(right.abs().max()) * (torch.finfo(dtype).eps + 16 * SINGLE)
            assert_no_worse(ours, followed(theirs, *tensors, activation), right, floor, case, dtype, tile, there)
    assert conv2d(torch.randn(0, 3, 4, 4), torch.randn(5, 3, 3, 3)).shape == (0, 5, 4, 4)


def phases() -> None:
    """Of an upsampled image that is never there."""
    torch.manual_seed(0)
    shapes = [(2, 3, 4, 5, 7), (1, 40, 9, 1, 1), (1, 32, 40, 3, 2)]
    for (n, c, k, height, width), dtype, tile, more in itertools.product(shapes, DTYPES, TILES, [False, True]):
        x = given((n, c, height, width), dtype, "last")
        weight, bias = given((k, c, 3, 3), dtype, "last"), torch.randn(k).to(dtype)
        row = torch.randn(n, k).to(dtype) if more else None
        residual = given((n, k, 2 * height, 2 * width), dtype, "first") if more else None
        activation = "silu" if more else None
        ours = conv2d(
            x, sums_of_weights(weight), bias, channel_bias=row, residual=residual, activation=activation, phases=True,
            tile=tile,
        )  # fmt: skip
        assert ours.is_contiguous(memory_format=torch.channels_last)
        large = F.interpolate(x.double(), scale_factor=2.0)
        wide = [None if t is None else t.double() for t in (bias, row, residual)]
        exact = followed(F.conv2d(large, weight.double(), padding=1), *wide, activation)
        # Of each of 4 c terms half a unit of its sum; the result's own rounding. They do not all point one way.
        size = float(F.conv2d(large.abs(), weight.double().abs(), padding=1).max())
        eps = torch.finfo(dtype).eps if dtype is torch.float16 else 0.0
        floor = size * (eps / 2 + 16 * SINGLE) + eps * float(exact.abs().max())
        assert_no_worse(ours, exact.to(torch.float32).to(dtype), exact, floor, n, c, k, dtype, tile, more)


def candidates() -> None:
    """Which are offered, and what they compute."""
    from pointwise import check

    from fastdiff import ops, use
    from fastdiff.ops.candidates import conv2d as found_by

    torch.manual_seed(0)
    last = torch.channels_last
    x = torch.randn(1, 24, 6, 7).half().contiguous(memory_format=last)
    square, point = (
        (torch.randn(16, 24, k, k) / 9).half().contiguous(memory_format=last) for k in (3, 1)
    )  # fmt: skip
    skip, bias = x[:, :8].contiguous(memory_format=last), torch.randn(16).half()
    both = torch.cat((point, point[:, :8]), 1)
    ours = ["triton", "triton 128x128/8/3"]
    for images, weight, more, names in (
        ((x, None), square, dict(bias=bias), ["cudnn, sum by triton", "torch", *ours]),
        ((x, None), point, dict(padding=0), ["torch", *ours]),
        ((x, None), square, dict(stride=2), ["torch", *ours]),
        ((x, None), square.contiguous(), {}, ["torch"]),
        ((x, None), square, dict(scale=0.5), ["torch"]),
        ((x, skip), both, dict(padding=0), [*ours, "torch"]),
        ((x.contiguous(), None), square, {}, ["torch", "torch channels-last"]),
        ((x.float(), None), square.float(), {}, ["torch"]),
    ):
        a = ops.conv2d.Arguments(*images, weight, **more)
        with use("triton"):
            found = ops.conv2d.candidates(a)
        assert [c.name for c in found] == names, (more, [c.name for c in found])
        if x.dtype is images[0].dtype:
            check(ops.conv2d, a, [c for c in found if not c.name.startswith("cudnn")])  # see pointwise.py for those
    with use("triton"):
        big = torch.empty(2, 320, 64, 64, dtype=torch.float16, device="meta").to(memory_format=last)
        weight = torch.empty(320, 320, 3, 3, dtype=torch.float16, device="meta").to(memory_format=last)
        _, absent = found_by._ours(ops.conv2d, ops.conv2d.Arguments(big, None, weight), "triton")
        assert "slower on one H100" in absent


def cuts() -> None:
    """The tiles and parts that one H100 found the quickest of a few, by shape."""
    h100 = Device("sm_90", 132, 50 << 20, "sm_90")
    for shape, outputs, best in (
        ((2, 320, 64, 64), 320, Tile(128, 64, 64, 4, 3)), ((2, 640, 32, 32), 640, Tile(128, 128, 64, 8, 3, 3)),
        ((2, 1280, 16, 16), 1280, Tile(128, 128, 64, 8, 3, 3)), ((2, 1280, 8, 8), 1280, Tile(128, 64, 64, 4, 3, 6)),
        ((1, 512, 64, 64), 512, Tile(128, 128, 64, 8, 3)), ((2, 1920, 32, 32), 640, Tile(128, 128, 64, 8, 3, 3)),
        ((1, 256, 256, 256), 256, Tile(128, 128, 64, 8, 3)), ((1, 128, 512, 512), 128, Tile(128, 128, 64, 8, 3)),
    ):  # fmt: skip
        n, c, height, width = shape
        found = tiles(size_of(2, n * height * width, (outputs, c, 3, 3)), h100)
        assert found[0] == best, (shape, outputs, found)
        assert len(set(found)) == len(found)
    for rows, outputs, steps in itertools.product((1, 100, 5000), (4, 320, 1280), (1, 9, 180)):
        for target in TARGETS.values():
            for tile in tiles(size_of(2, rows, (outputs, 64 * steps, 1, 1)), target.device):
                assert 1 <= tile.splits <= 8
                assert tile.splits == 1 or steps // tile.splits >= 8


def compiles(target: str) -> None:
    from fastdiff.kernels.conv2d.variants import SIZES, launched

    for dtype, (name, size) in itertools.product(("fp32", "fp16", "bf16"), SIZES.items()):
        for launch in launched(target, dtype, size):
            found = assert_fits(launch, dtype, name)
            if dtype != "fp32" and launch.name == "conv2d":
                wanted = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "gfx942": "v_mfma"}
                assert wanted.get(target, "mma") in found.matrix_instruction, (name, found)
