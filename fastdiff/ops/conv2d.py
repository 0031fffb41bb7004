"""2-D convolution, 3x3 kernels by Winograd's algorithm: 36 multiplications for 4x4 results instead of 144. Lavin & Gray
2016, "Fast Algorithms for Convolutional Neural Networks", Section 4; Winograd 1980. 1x1: conv2d_pointwise.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.errors import expect, unknown
from fastdiff.ops.conv2d_algorithms import ALGORITHMS, Problem, choose
from fastdiff.ops.conv2d_pointwise import pointwise
from fastdiff.ops.conv2d_weights import PackedConv2d, as_they_are, large_pages, packed
from fastdiff.ops.registration import check_tensor, register, through_reference
from fastdiff.runtime.choice import pick
from fastdiff.runtime.dispatcher import transformed, wants_gradient
from fastdiff.runtime.memory import empty
from fastdiff.runtime.native import core

_ACTIVATIONS = ("silu",)


def conv2d(
    x: Tensor | Sequence[Tensor],
    weight: Tensor | PackedConv2d,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 1,
    residual: Tensor | None = None,
    channel_bias: Tensor | None = None,
    activation: str | None = None,
    upsample: int = 1,
    scale: float = 1.0,
) -> Tensor:
    """scale * activation(convolution(x) + bias + channel_bias + residual).

    x: (N, C, H, W), or several of them that are concatenated along C; two are read where they are. upsample: x is first
    made that many times as large, nearest neighbour, which is never in memory. weight: (K, C, kh, kw), or a
    PackedConv2d, which has its own bias. bias: (K,). residual: of the result's shape. channel_bias: (N, K) or
    (N, K, 1, 1), a time embedding for example. activation: None or "silu". All of one dtype: float32, bfloat16, float16
    or float64; the kernels take float32.

    Returns (N, K, H', W'), from the kernel in channels-last strides; x and residual are best channels-last as well, for
    else they are copied. What the kernel makes of a weight is kept as long as the weight lives, and made again when its
    version (`_version`) or address changes; a change through `.data` in place is not seen, like anywhere in PyTorch.
    Differentiable. An infinity or NaN spreads to the 4x4 results that are computed with it, not only to its neighbours.
    Raises ValueError where shapes do not fit, TypeError for mixed dtypes.
    """
    if isinstance(weight, PackedConv2d):
        expect(bias is None, "bias must be None with a PackedConv2d, which has its own")
        bias, weight = weight.bias, weight.weight
    x, skip = _images(x)
    if channel_bias is not None and channel_bias.ndim == 4:
        channel_bias = channel_bias.flatten(1)
    arguments: tuple[Any, ...] = (
        x, skip, weight, bias, stride, padding, residual, channel_bias, activation, upsample, scale,
    )  # fmt: skip
    _check(*arguments)
    if (y := pointwise(*arguments)) is not None:
        return y
    if pick(supports(*arguments), faster_in_torch(*arguments)) == "reference":
        return reference(*arguments)
    return _call(*arguments, None)


def reference(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 1,
    residual: Tensor | None = None,
    channel_bias: Tensor | None = None,
    activation: str | None = None,
    upsample: int = 1,
    scale: float = 1.0,
    algorithm: str | None = None,
) -> Tensor:
    """The same in plain PyTorch; skip: what is concatenated to x, or None."""
    x = x if skip is None else torch.cat((x, skip), 1)
    if upsample != 1:
        x = F.interpolate(x, scale_factor=float(upsample), mode="nearest")
    y = F.conv2d(x, weight, bias, stride, padding)
    if channel_bias is not None:
        y = y + channel_bias[:, :, None, None]
    if residual is not None:
        y = y + residual
    if activation == "silu":
        y = F.silu(y)
    return y if scale == 1 else scale * y


def supports(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 1,
    residual: Tensor | None = None,
    channel_bias: Tensor | None = None,
    activation: str | None = None,
    upsample: int = 1,
    scale: float = 1.0,
) -> str | None:
    """Why the compiled kernel cannot take this, or None."""
    if (reason := transformed()) is not None:
        return reason
    if not x.is_cpu:
        return f"x is on {x.device}, and the C++ kernel runs on the CPU"
    if x.dtype is not torch.float32:
        return f"the C++ kernel takes float32, not {x.dtype}"
    if weight.shape[2:] != (3, 3) or stride != 1:
        return f"the C++ kernel is for 3x3 and stride 1, not {'x'.join(map(str, weight.shape[2:]))} and stride {stride}"
    if upsample not in (1, 2):
        return f"the C++ kernel makes x once or twice as large, not {upsample} times"
    return None


def faster_in_torch(x: Tensor, skip: Tensor | None, weight: Tensor, *rest: object) -> str | None:
    """Why torch is faster with these arguments of `reference`, so that it runs unless the kernel is insisted on; or
    None."""
    if wants_gradient((x, skip, weight, *rest)):
        return "a gradient is wanted: backward would compute all again, and a weight that changes is packed each time"
    if not torch.compiler.is_compiling() and weight.is_inference():
        return "the weight is an inference tensor, whose changes cannot be seen: nothing made of it could be kept"
    if (x.shape[1] < 64 and skip is None) or weight.shape[0] < 32:
        return "with few channels the transforms cost more than the products that they spare"
    return None


def _images(x: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """x and what is concatenated to it, where the kernel can read that; else both in one."""
    if isinstance(x, Tensor):
        return x, None
    expect(len(x) > 0, "x must be a tensor or several of them, got none")
    if len(x) == 1:
        return x[0], None
    if len(x) == 2 and x[0].ndim == 4 and x[0].shape[1] % core.CONV2D_CHANNEL_BLOCK == 0:
        return x[0], x[1]
    return torch.cat(tuple(x), 1), None


def _check(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    residual: Tensor | None,
    channel_bias: Tensor | None,
    activation: str | None,
    upsample: int,
    scale: float,
    algorithm: str | None = None,
) -> None:
    expect(x.ndim == 4, f"x must be (N, C, H, W), got {tuple(x.shape)}")
    expect(
        stride >= 1 and padding >= 0 and upsample >= 1, f"stride, padding, upsample: {stride}, {padding}, {upsample}"
    )
    if activation is not None and activation not in _ACTIVATIONS:
        raise unknown("activation", activation, _ACTIVATIONS)
    if algorithm is not None and algorithm not in ALGORITHMS:
        raise unknown("algorithm", algorithm, ALGORITHMS)
    batch, channels, height, width = x.shape
    if skip is not None:
        expect(skip.ndim == 4, f"x must be (N, C, H, W), got also {tuple(skip.shape)}")
        check_tensor("the second x", skip, x, (batch, skip.shape[1], height, width))
        channels += skip.shape[1]
    expect(weight.ndim == 4, f"weight must be (K, C, kh, kw), got {tuple(weight.shape)}")
    check_tensor("weight", weight, x, (weight.shape[0], channels, *weight.shape[2:]))
    shape = _result_shape(x, weight, stride, padding, upsample)
    expect(min(shape[2:]) > 0, f"x {tuple(x.shape)} has fewer pixels than weight {tuple(weight.shape)}")
    if bias is not None:
        check_tensor("bias", bias, x, shape[1:2])
    if channel_bias is not None:
        check_tensor("channel_bias", channel_bias, x, shape[:2])
    if residual is not None:
        check_tensor("residual", residual, x, shape)


def _result_shape(x: Tensor, weight: Tensor, stride: int, padding: int, upsample: int) -> tuple[int, int, int, int]:
    down, across = (
        (upsample * size + 2 * padding - kernel) // stride + 1 for size, kernel in zip(x.shape[2:], weight.shape[2:])
    )
    return x.shape[0], weight.shape[0], down, across


def _kernel(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    residual: Tensor | None,
    channel_bias: Tensor | None,
    activation: str | None,
    upsample: int,
    scale: float,
    algorithm: str | None,
) -> Tensor:
    reason = supports(x, skip, weight, bias, stride, padding, residual, channel_bias, activation, upsample)
    if reason is not None:
        raise ValueError(reason)
    shape = batch, out_channels, height, width = _result_shape(x, weight, stride, padding, upsample)
    out = empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    if not out.numel():
        return out
    images = [_pixels(image) for image in ((x,) if skip is None else (x, skip))]
    residual = None if residual is None else _pixels(residual)
    bias = None if bias is None else bias.contiguous()
    if channel_bias is not None and channel_bias.stride(1) != 1:
        channel_bias = channel_bias.contiguous()
    problem = Problem(
        batch, weight.shape[1], out_channels, height, width, upsample, torch.get_num_threads(), core.isa()
    )
    forms = packed(weight)

    def run(algorithm: str) -> None:
        scratch = large_pages(problem.scratch(algorithm))
        if algorithm == "winograd-amx":
            _kept, read = as_they_are(weight)
        else:
            read = (forms.get(algorithm).data_ptr(), 0, 0, 0)
        core.conv2d(
            [_image(image) for image in images],
            (batch, upsample * x.shape[2], upsample * x.shape[3], upsample - 1, padding, out_channels, height, width),
            read,
            algorithm,
            0 if bias is None else bias.data_ptr(),
            0 if channel_bias is None else channel_bias.data_ptr(),
            0 if channel_bias is None else channel_bias.stride(0),
            _image(residual),
            activation == "silu",
            scale,
            out.data_ptr(),
            scratch.data_ptr(),
            problem.threads,
        )

    chosen = algorithm
    if chosen is None:
        chosen, measured = choose(problem, run)
        if measured:
            forms.keep_only(chosen)
    run(chosen)
    return out


def _pixels(image: Tensor) -> Tensor:
    """The image with contiguous channels."""
    return image if image.stride(1) == 1 else image.contiguous(memory_format=torch.channels_last)


def _image(image: Tensor | None) -> tuple[int, int, int, int, int]:
    """(address, channels, strides of a sample, a row and a pixel)."""
    if image is None:
        return 0, 0, 0, 0, 0
    return image.data_ptr(), image.shape[1], image.stride(0), image.stride(2), image.stride(3)


def _fake(x: Tensor, skip: Tensor | None, weight: Tensor, bias: Tensor | None, stride: int, padding: int,
          residual: Tensor | None, channel_bias: Tensor | None, activation: str | None, upsample: int, *rest: object
          ) -> Tensor:  # fmt: skip
    shape = _result_shape(x, weight, stride, padding, upsample)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


_call = register(
    "conv2d(Tensor x, Tensor? skip, Tensor weight, Tensor? bias, int stride, int padding, Tensor? residual, "
    "Tensor? channel_bias, str? activation, int upsample, float scale, str? algorithm) -> Tensor",
    kernel=_kernel,
    check=_check,
    fake=_fake,
    **through_reference(reference),
)
