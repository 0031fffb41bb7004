"""The kernels between products and norms: numbers in the interpreter, compilation ahead of time."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from checks import assert_fits, assert_no_worse
from torch import Tensor

from fastdiff.kernels.ahead_of_time.compile import launches
from fastdiff.kernels.pointwise import add_bias, gated

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SINGLE = torch.finfo(torch.float32).eps


def summed(x, bias=None, channel_bias=None, residual=None, activation=None) -> Tensor:
    y = x if bias is None else x + bias[:, None, None]
    y = y if channel_bias is None else y + channel_bias[:, :, None, None]
    y = y if residual is None else y + residual
    return F.silu(y) if activation else y


def unit(x: Tensor, activation: str) -> Tensor:
    a, b = x.chunk(2, -1)
    return a * (
        F.silu(b) if activation == "silu" else F.gelu(b, approximate="tanh" if "tanh" in activation else "none")
    )


def sums() -> None:
    torch.manual_seed(0)
    shapes = [(2, 7, 3, 5), (1, 320, 4, 4), (3, 5, 1, 1), (2, 33, 17, 9), (0, 4, 2, 2)]
    present = itertools.product([False, True], repeat=3)
    for shape, dtype, last, given, activation in itertools.product(
        shapes, DTYPES, [False, True], list(present), [None, "silu"]
    ):
        layout = torch.channels_last if last else torch.contiguous_format
        x, residual = ((20 * torch.randn(shape)).to(dtype) for _ in range(2))
        x = x.contiguous(memory_format=layout)
        tensors = (torch.randn(shape[1]).to(dtype), torch.randn(shape[0], 2 * shape[1])[:, 1::2].to(dtype), residual)
        chosen = [t if there else None for t, there in zip(tensors, given)]
        exact = summed(x.double(), *(t if t is None else t.double() for t in chosen), activation)
        theirs = summed(x, *chosen, activation)
        strides = x.stride()
        ours = add_bias(x, *chosen, activation)
        assert ours is x
        assert ours.stride() == strides
        floor = float(exact.abs().max()) * (torch.finfo(dtype).eps + 8 * SINGLE) if exact.numel() else 0.0
        assert_no_worse(ours, theirs, exact, floor, shape, dtype, last, given, activation)


def units() -> None:
    torch.manual_seed(0)
    shapes = [(2, 5, 2), (3, 7, 14), (1, 3, 640), (9, 66), (0, 8)]
    for shape, dtype, activation in itertools.product(shapes, DTYPES, ["silu", "gelu", "gelu_tanh"]):
        x = (3 * torch.randn(shape)).to(dtype)
        if x.numel():
            x.view(-1)[-1] = -40  # far out, where the activation is 0
        exact = unit(x.double(), activation)
        floor = float(exact.abs().max()) * (torch.finfo(dtype).eps + 16 * SINGLE) if exact.numel() else 0.0
        assert_no_worse(gated(x, activation), unit(x, activation), exact, floor, shape, dtype, activation)


def compiles(target: str) -> None:
    for dtype, last in itertools.product(DTYPES, [False, True]):
        layout = torch.channels_last if last else torch.contiguous_format
        x = torch.empty((2, 320, 64, 64), dtype=dtype, device="meta").to(memory_format=layout)
        vector, row = (torch.empty(shape, dtype=dtype, device="meta") for shape in ((320,), (2, 320)))
        (launch,) = launches(target, add_bias, x, vector, row, x, "silu")
        assert_fits(launch, str(dtype), last)
        for activation in ("silu", "gelu", "gelu_tanh"):
            (launch,) = launches(target, gated, torch.empty((8192, 2560), dtype=dtype, device="meta"), activation)
            assert_fits(launch, str(dtype), activation)
