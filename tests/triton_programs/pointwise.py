"""The kernels between products and norms: numbers in the interpreter, compilation ahead of time."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from checks import assert_fits, assert_no_worse
from torch import Tensor

from fastdiff.kernels.pointwise import add_bias, gated, interleave, phases

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
    shapes = [(2, 7, 3, 5), (1, 320, 4, 4), (3, 5, 1, 1), (2, 33, 17, 9), (2, 320, 8, 8), (0, 4, 2, 2)]
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


def upsampled() -> None:
    """By phases, against the convolution of the upsampled image."""
    torch.manual_seed(0)
    shapes = [(2, 3, 4, 5, 7), (1, 20, 9, 1, 1), (1, 4, 40, 3, 2)]
    for (n, c, k, height, width), dtype, last, biased in itertools.product(
        shapes, DTYPES, [False, True], [False, True]
    ):
        layout = torch.channels_last if last else torch.contiguous_format
        x = torch.randn(n, c, height, width).to(dtype)
        weight = torch.randn(k, c, 3, 3).to(dtype).contiguous(memory_format=layout)
        bias = torch.randn(k).to(dtype) if biased else None
        summed = phases(weight)
        assert summed.is_contiguous(memory_format=torch.channels_last)
        # The sums are rounded once, the product here not at all.
        y = F.conv2d(x.float(), summed.float(), padding=1).contiguous(memory_format=torch.channels_last)
        ours = interleave(y, None if bias is None else bias.float())
        large = F.interpolate(x.double(), scale_factor=2.0)
        exact = F.conv2d(large, weight.double(), None if bias is None else bias.double(), padding=1)
        assert ours.is_contiguous(memory_format=torch.channels_last)
        # Of each of 4 c terms half a unit, 16 at most of a sum of 4 normal numbers; they do not all point one way.
        size = float(F.conv2d(large.abs(), weight.double().abs(), padding=1).max())
        eps = torch.finfo(dtype).eps if dtype is not torch.float32 else 0.0
        assert_no_worse(ours, exact.float(), exact, size * (eps / 2 + 16 * SINGLE), n, c, k, dtype, last, biased)


def candidates() -> None:
    """Convolutions by the candidates that end in these kernels, against PyTorch's own: an error of at most 1.25 times
    its, RMS. In bfloat16 the interpreter cuts off where a GPU rounds."""
    from fastdiff import ops, use
    from fastdiff.ops.candidates import conv2d

    torch.manual_seed(0)

    def rounded_once(x: Tensor, weight: Tensor, bias: Tensor | None = None, *options, f=F.conv2d, **named) -> Tensor:
        """As by cuDNN, which adds no bias to halves; on the CPU parts of sums are rounded."""
        wide = torch.promote_types(x.dtype, torch.float32)
        y = f(x.to(wide), weight.to(wide), None, *options, **named).to(x.dtype)
        return y if bias is None else y + bias[:, None, None]

    conv2d.F.conv2d = rounded_once
    for dtype, last, upsample, more in itertools.product(DTYPES[:2], [False, True], [1, 2], [False, True]):
        layout = torch.channels_last if last else torch.contiguous_format
        x = torch.randn(2, 24, 7, 6).to(dtype).contiguous(memory_format=torch.channels_last)
        weight = (torch.randn(40, 24, 3, 3) / 12).to(dtype).contiguous(memory_format=layout)
        size = (2, 40, 7 * upsample, 6 * upsample)
        bias, row, residual = (torch.randn(shape).to(dtype) for shape in ((40,), (2, 40), size))
        row, residual, activation = (row, residual, "silu") if more else (None, None, None)
        skip = torch.randn(2, 8, 7, 6).to(dtype) if upsample == 1 and more else None
        weight = weight if skip is None else torch.cat([weight, weight[:, :8]], 1)
        a = ops.conv2d.Arguments(x, skip, weight, bias, 1, 1, residual, row, activation, upsample)
        with use("triton"):
            found = ops.conv2d.candidates(a)
        names = ["cudnn, sum by triton", "torch"]
        if upsample == 2 and dtype is torch.float16:
            names = ["cudnn by phases", "triton by phases", "triton by phases 128x128/8/3", *names]
        elif last and dtype is torch.float16:
            names += ["triton", "triton 128x128/8/3"]
        assert [c.name for c in found] == names, (names, [c.name for c in found])
        check(ops.conv2d, a, found)


def check(op, a, found) -> None:
    given = [t.clone() for t in op.tensors(a) if t is not None]
    exact = op.reference(type(a)(*(t.double() if isinstance(t, Tensor) else t for t in a)))
    results = {c.name: c.run(a) for c in found}
    errors = {name: float((y.double() - exact).square().mean().sqrt()) for name, y in results.items()}
    for name, error in errors.items():
        assert results[name].dtype is a[0].dtype
        assert error <= 1.25 * errors["torch"] + 4 * SINGLE * float(exact.abs().max()), (name, errors, a[4:])
    assert all(torch.equal(x, y) for x, y in zip(given, (t for t in op.tensors(a) if t is not None)))


def compiles(target: str) -> None:
    from fastdiff.kernels.pointwise.variants import ACTIVATIONS, launched, unit

    for dtype, last in itertools.product(("fp32", "fp16", "bf16"), [False, True]):
        for launch in launched(target, dtype, channels_last=last).values():
            assert_fits(launch, dtype, last)
    for dtype, activation in itertools.product(("fp32", "fp16", "bf16"), ACTIVATIONS):
        assert_fits(unit(target, dtype, activation), dtype, activation)
