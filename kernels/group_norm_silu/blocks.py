"""What the kernels of group norm have in common."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def channel_factors(
    weight, bias, scale, shift, sample_start, channel, inside,
    affine: tl.constexpr, biased: tl.constexpr, scaled: tl.constexpr, shifted: tl.constexpr,
):  # fmt: skip
    """(1 + scale) weight and (1 + scale) bias + shift: what takes the normalized x of channels to the activation."""
    factor = tl.full(channel.shape, 1.0, tl.float32)
    offset = tl.zeros(channel.shape, tl.float32)
    if affine:
        factor = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    if biased:
        offset = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    if scaled:
        modulation = 1 + tl.load(scale + sample_start + channel, mask=inside, other=0.0).to(tl.float32)
        factor, offset = factor * modulation, offset * modulation
    if shifted:
        offset = offset + tl.load(shift + sample_start + channel, mask=inside, other=0.0).to(tl.float32)
    return factor, offset
