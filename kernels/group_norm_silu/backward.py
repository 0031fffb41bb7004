"""Gradients of group_norm_silu in Triton.

Three launches for as many groups at a time as L2 keeps: statistics of parts again, two sums over the
pixels of each part for every channel, from which all gradients but dx follow, and dx. No GPU has run them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launching import launch
from .blocks import channel_factors
from .forward import SIZES, group_norm_silu_statistics_kernel, load_channels, merge_statistics
from .launch import arguments, in_layout, plan_for
from .plan import Plan


@triton.jit
def through_activation(g, y, silu: tl.constexpr):
    """The gradient before the activation, from that behind it."""
    if silu:
        s = tl.sigmoid(y)
        g = g * s * (1 + y * (1 - s))
    return g


@triton.jit(do_not_specialize=SIZES)
def group_norm_silu_sums_kernel(
    x, weight, bias, scale, shift, grad, partial, sums,
    first_pair, groups, samples, channels, pixels, width, part_pixels, parts, eps,
    channel_stride, pixel_stride,
    affine: tl.constexpr, biased: tl.constexpr, scaled: tl.constexpr, shifted: tl.constexpr, silu: tl.constexpr,
    block_channels: tl.constexpr, block_pixels: tl.constexpr, parts_block: tl.constexpr,
):  # fmt: skip
    """sums: (2, parts, samples, channels): over the pixels of a part, of a, the gradient before the activation, and of
    a times the normalized x."""
    pair, part = first_pair + tl.program_id(0), tl.program_id(1)
    sample, group = (pair // groups).to(tl.int64), pair % groups
    start = sample * channels * pixels + group * width * channel_stride
    x += start
    grad += start
    i, j = tl.arange(0, block_channels), tl.arange(0, block_pixels)
    end = tl.minimum((part + 1) * part_pixels, pixels)
    mean, inverse = merge_statistics(partial + pair * parts * 2, parts, part_pixels, pixels, width, eps, parts_block)
    for first in range(0, width, block_channels):
        c = first + i
        channel = group * width + c
        factor, offset = channel_factors(
            weight, bias, scale, shift, sample * channels, channel, c < width, affine, biased, scaled, shifted
        )
        total = tl.zeros((block_channels,), tl.float32)
        product = tl.zeros((block_channels,), tl.float32)
        for pixel in range(part * part_pixels, end, block_pixels):
            v, _ = load_channels(x, c, pixel + j, width, end, channel_stride, pixel_stride, "evict_last")
            g, _ = load_channels(grad, c, pixel + j, width, end, channel_stride, pixel_stride, "evict_last")
            normal = (v - mean) * inverse
            g = through_activation(g, normal * factor[:, None] + offset[:, None], silu)
            total += tl.sum(g, axis=1)
            product += tl.sum(g * normal, axis=1)
        place = (part * samples + sample) * channels + channel
        tl.store(sums + place, total, mask=c < width)
        tl.store(sums + parts * samples * channels + place, product, mask=c < width)


@triton.jit(do_not_specialize=SIZES)
def group_norm_silu_dx_kernel(
    x, weight, bias, scale, shift, grad, partial, sums, dx,
    first_pair, groups, samples, channels, pixels, width, part_pixels, parts, eps,
    channel_stride, pixel_stride,
    affine: tl.constexpr, biased: tl.constexpr, scaled: tl.constexpr, shifted: tl.constexpr, silu: tl.constexpr,
    block_channels: tl.constexpr, block_pixels: tl.constexpr, parts_block: tl.constexpr,
):  # fmt: skip
    """dx of a part of a group: what is left of the gradient without its mean and its product with the normalized x."""
    pair, part = first_pair + tl.program_id(0), tl.program_id(1)
    sample, group = (pair // groups).to(tl.int64), pair % groups
    start = sample * channels * pixels + group * width * channel_stride
    x += start
    grad += start
    dx += start
    i, j = tl.arange(0, block_channels), tl.arange(0, block_pixels)
    end = tl.minimum((part + 1) * part_pixels, pixels)
    mean, inverse = merge_statistics(partial + pair * parts * 2, parts, part_pixels, pixels, width, eps, parts_block)
    gradients = tl.zeros((block_channels,), tl.float32)
    products = tl.zeros((block_channels,), tl.float32)
    for first in range(0, width, block_channels):
        c = first + i
        channel = group * width + c
        factor, _ = channel_factors(
            weight, bias, scale, shift, sample * channels, channel, c < width, affine, biased, scaled, shifted
        )
        for other in range(parts):
            place = sums + (other * samples + sample) * channels + channel
            gradients += factor * tl.load(place, mask=c < width, other=0.0)
            products += factor * tl.load(place + parts * samples * channels, mask=c < width, other=0.0)
    count = pixels.to(tl.float32) * width
    mean_gradient, mean_product = tl.sum(gradients) / count, tl.sum(products) / count
    for first in range(0, width, block_channels):
        c = first + i
        factor, offset = channel_factors(
            weight, bias, scale, shift, sample * channels, group * width + c, c < width,
            affine, biased, scaled, shifted,
        )  # fmt: skip
        for pixel in range(part * part_pixels, end, block_pixels):
            p = pixel + j
            v, inside = load_channels(x, c, p, width, end, channel_stride, pixel_stride, "evict_first")
            g, _ = load_channels(grad, c, p, width, end, channel_stride, pixel_stride, "evict_first")
            normal = (v - mean) * inverse
            g = through_activation(g, normal * factor[:, None] + offset[:, None], silu) * factor[:, None]
            result = (g - mean_gradient - normal * mean_product) * inverse
            place = dx + c[:, None] * channel_stride + p[None, :] * pixel_stride
            tl.store(place, result.to(dx.dtype.element_ty), mask=inside, eviction_policy="evict_first")


def group_norm_silu_backward(
    grad: Tensor, x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, *, scale: Tensor | None = None, shift: Tensor | None = None, activation: str | None = "silu",
    cut: Plan | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Gradients of x and, where given, weight, bias, scale and shift, by name, from the gradient of the result.

    Arguments as of group_norm_silu; grad: of x's shape. Sums are in float32 and do not change from run to run.
    """
    samples, channels = x.shape[:2]
    given = {"weight": weight, "bias": bias, "scale": scale, "shift": shift}
    present = {name: t for name, t in given.items() if t is not None}
    x, last = in_layout(x)
    grad = grad.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    dx = torch.empty_like(x)
    if not x.numel():
        return {"x": dx} | {name: torch.zeros_like(t) for name, t in present.items()}
    cut = cut or plan_for(x, num_groups, last, tensors=2, whole=False)
    place, rest = arguments(x, num_groups, weight, bias, eps, scale, shift, activation)
    pairs = samples * num_groups
    partial = torch.empty((pairs, cut.parts, 2), dtype=torch.float32, device=x.device)
    sums = torch.empty((2, cut.parts, samples, channels), dtype=torch.float32, device=x.device)
    for first, count in cut.launches(pairs):
        part = dict(x=x, partial=partial, first_pair=first, part_pixels=cut.part_pixels, **place, **cut.options)
        launch(group_norm_silu_statistics_kernel, (count, cut.parts), **part)
        part |= dict(grad=grad, sums=sums, samples=samples, **rest)
        part |= dict(parts=cut.parts, parts_block=triton.next_power_of_2(cut.parts))
        launch(group_norm_silu_sums_kernel, (count, cut.parts), **part)
        launch(group_norm_silu_dx_kernel, (count, cut.parts), **part, dx=dx)
    # What is left are sums over a few numbers a channel.
    gradient, product = sums.sum(1)
    modulation = 1.0 if scale is None else 1 + rest["scale"].float()
    results = {
        "weight": lambda: (product * modulation).sum(0),
        "bias": lambda: (gradient * modulation).sum(0),
        "scale": lambda: (
            product * (1.0 if weight is None else weight.float()) + gradient * (0.0 if bias is None else bias.float())
        ),
        "shift": lambda: gradient,
    }
    return {"x": dx} | {name: results[name]().to(t.dtype).reshape(t.shape) for name, t in present.items()}
