"""Blocks that the reference models share. They call `fastdiff.ops`, so `fastdiff.use("reference")` makes them plain
PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.models.parts.attention import Context, attend, split_heads, unmasked
from fastdiff.ops.conv2d import conv2d
from fastdiff.ops.group_norm_silu import group_norm_silu
from fastdiff.ops.tensors import is_channels_last

# From a number of channels to its normalisation: each family has its own groups and epsilon.
Norm = Callable[[int], nn.Module]


def timestep_embedding(
    t: Tensor, dim: int, *, max_period: float = 10_000.0, sin_first: bool = False, shift: float = 0.0
) -> Tensor:
    """Sinusoidal embedding [cos, sin] of the time (Vaswani et al. 2017, Section 3.5; Ho et al. 2020, Appendix B).

    t: (B,) times in the units of training, fractional ones included. The dim // 2 frequencies fall geometrically from
    1; the one that would come after them, less `shift`, is 1 / max_period: with shift=1 the last one is. sin_first: for
    [sin, cos]. Returns (B, dim) in t's dtype, with a zero at the end where dim is odd.
    """
    half = dim // 2
    steps = torch.arange(half, device=t.device, dtype=t.dtype)
    angles = t[:, None] * torch.exp(-math.log(max_period) * steps / (half - shift))
    halves = (angles.sin(), angles.cos()) if sin_first else (angles.cos(), angles.sin())
    return F.pad(torch.cat(halves, dim=1), (0, dim % 2))


def rate_embedding(t: Tensor, dim: int, *, max_period: float = 10_000.0) -> Tensor:
    """`timestep_embedding` [sin, cos] whose last frequency is 1 / max_period: (B,) -> (B, dim), dim even.

    With the frequencies rounded as in the code of lucidrains and those who follow it, exp of a step times a rate: at
    t = 1000 one unit of float32 in them is 6e-5 of a radian.
    """
    rate = math.log(max_period) / (dim // 2 - 1)
    angles = t[:, None] * torch.exp(torch.arange(dim // 2, device=t.device, dtype=t.dtype) * -rate)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def embedding_dtype(x: Tensor) -> torch.dtype:
    """The dtype for the times of x: half precisions have no room for 999."""
    return torch.promote_types(x.dtype, torch.float32)


def mlp(in_channels: int, channels: int, out_channels: int | None = None) -> nn.Sequential:
    """Linear, SiLU, linear: what makes a conditioning vector of an embedding."""
    return nn.Sequential(nn.Linear(in_channels, channels), nn.SiLU(), nn.Linear(channels, out_channels or channels))


def zero_init(layer: nn.Module) -> nn.Module:
    """Zero a layer's parameters, so that its residual branch starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def conv_nd(dims: int, in_channels: int, out_channels: int, kernel: int, **options: Any) -> nn.Module:
    """A convolution over `dims` (1, 2 or 3) spatial dimensions."""
    made: Callable[..., nn.Module] = (nn.Conv1d, Conv2d, nn.Conv3d)[dims - 1]
    return made(in_channels, out_channels, kernel, **options)


class Conv2d(nn.Conv2d):
    """2-D convolution, by `fastdiff.ops.conv2d` where a gradient is wanted, for which it has kernels. Otherwise it is
    PyTorch's, in place of which `optimize` puts the operator with all that follows it."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and self._fits(x):
            return conv2d(x, self.weight, self.bias, padding=self.padding[0])  # type: ignore[arg-type]
        return super().forward(x)

    def _fits(self, x: Tensor) -> bool:
        """Whether the operator computes this with a gradient, in the strides that PyTorch gives."""
        return (
            x.is_cpu
            and x.dtype == self.weight.dtype == torch.float32
            and (x.requires_grad or self.weight.requires_grad)
            and self.kernel_size == (3, 3)
            and self.stride == self.dilation == (1, 1)
            and self.padding in ((0, 0), (1, 1))
            and self.groups == 1
            and self.padding_mode == "zeros"
            and x.ndim == 4
            and (is_channels_last(x) or is_channels_last(self.weight))
            and not torch.is_autocast_enabled("cpu")
        )


class GroupNorm(nn.GroupNorm):
    """Group norm, then what is asked for of (1 + scale) y + shift and SiLU, in one operation.

    x: (B, C, ...). scale, shift: (B, C). Where the norm's own weights are of another dtype, as under autocast, the
    arithmetic is theirs and the result x's.
    """

    def forward(
        self, x: Tensor, *, scale: Tensor | None = None, shift: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        dtype = self.weight.dtype
        y = group_norm_silu(
            x.to(dtype),
            self.num_groups,
            self.weight,
            self.bias,
            self.eps,
            scale=None if scale is None else scale.to(dtype),
            shift=None if shift is None else shift.to(dtype),
            activation=activation,
        )
        return y.to(x.dtype)


class GainNorm(nn.Module):
    """Layer norm without a shift, over one axis (lucidrains' LayerNorm): (B, S, C), or (B, C, ...) with axis=1.

    Epsilon is 1e-5 in every dtype; the original has 1e-3 in all but float32, which takes a network in half precision
    away from what it is in float32. stable: of x divided by its largest element, sign and all, as the original does; it
    changes nothing but the share of epsilon.
    """

    def __init__(self, channels: int, *, axis: int = -1, stable: bool = False) -> None:
        super().__init__()
        self.axis, self.stable = axis, stable
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(self.axis, -1)
        if self.stable:
            x = x / x.amax(dim=-1, keepdim=True).detach()
        return F.layer_norm(x, x.shape[-1:], self.gain.to(x.dtype), None, 1e-5).movedim(-1, self.axis)


class ResBlock(nn.Module):
    """Residual block: norm, SiLU, convolution, twice, with the embedding of the time between them.

    (B, in_channels, ...) and an embedding (B, embedding_channels), after its activation -> (B, out_channels, ...).

    adaptive: the embedding scales and shifts what the second norm gives (Dhariwal & Nichol 2021, ADM, Eq. 3); otherwise
    it is added before that norm (Ho et al. 2020). embedding_channels: None for a block without. resample: a layer
    without parameters that changes the resolution of both branches. project_skip: a 1 x 1 convolution on the skip
    branch even if it changes no channels. output_scale: of the sum.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int | None,
        *,
        norm: Norm,
        adaptive: bool = True,
        dropout: float = 0.0,
        resample: nn.Module | None = None,
        project_skip: bool = False,
        output_scale: float = 1.0,
        dims: int = 2,
    ) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.resample = resample
        self.conv1 = conv_nd(dims, in_channels, out_channels, 3, padding=1)
        self.scale_shift = self.shift = None
        if embedding_channels is not None and adaptive:
            self.scale_shift = nn.Linear(embedding_channels, 2 * out_channels)
        elif embedding_channels is not None:
            self.shift = nn.Linear(embedding_channels, out_channels)
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(conv_nd(dims, out_channels, out_channels, 3, padding=1))
        project = project_skip or in_channels != out_channels
        self.skip = conv_nd(dims, in_channels, out_channels, 1) if project else nn.Identity()
        self.output_scale = output_scale

    def forward(self, x: Tensor, embedding: Tensor | None = None, size: torch.Size | None = None) -> Tensor:
        h = self.norm1(x, activation="silu")
        if self.resample is not None:
            h, x = self.resample(h, size), self.resample(x, size)
        h = self.conv1(h)
        scale = shift = None
        if self.scale_shift is not None:
            scale, shift = self.scale_shift(embedding).chunk(2, dim=1)
        elif self.shift is not None:
            h = h + self.shift(embedding).reshape(*h.shape[:2], *[1] * (h.ndim - 2))
        h = self.norm2(h, scale=scale, shift=shift, activation="silu")
        y = self.skip(x) + self.conv2(self.dropout(h))
        return y if self.output_scale == 1 else y * self.output_scale


class Conditioned(nn.Module):
    """A layer that is given all that a stage of a backbone has: layer(h, embedding, context, size)."""


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of a feature map, with a residual: (B, C, ...) -> (B, C, ...).

    context_channels: of further keys and values that come before the pixels', (B, S, context_channels) (Nichol et al.
    2021, GLIDE, Section 2.1); of a masked context the tokens that count. only_context: the pixels attend to the context
    alone. output_scale: of the sum. qkv_bias: whether the first projection has one.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        norm: Norm,
        context_channels: int | None = None,
        only_context: bool = False,
        output_scale: float = 1.0,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        if only_context and not context_channels:
            raise ValueError("only_context needs context_channels")
        if channels % num_heads != 0:
            raise ValueError(f"{num_heads} heads do not divide the {channels} channels of an attention block")
        self.num_heads = num_heads
        self.norm = norm(channels)
        self.only_context = only_context
        self.qkv = nn.Linear(channels, channels if only_context else 3 * channels, bias=qkv_bias)
        self.kv_context = nn.Linear(context_channels, 2 * channels) if context_channels else None
        self.proj = zero_init(nn.Linear(channels, channels))
        self.output_scale = output_scale

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, S, C)
        q, *own = split_heads(self.qkv(tokens), 1 if self.only_context else 3, self.num_heads)
        kind, mask = "self", None
        if self.kv_context is not None and context is not None:
            words, mask = unmasked(context)
            k, v = split_heads(self.kv_context(words), 2, self.num_heads)
            kind = "joint" if own else "cross"
            if own:
                k, v = (torch.cat(pair, dim=2) for pair in zip((k, v), own))
                mask = None if mask is None else F.pad(mask, (0, tokens.shape[1]), value=True)
        elif own:
            k, v = own
        else:
            raise ValueError("context must be given to attention that sees it alone")
        h = self.proj(attend(q, k, v, layer=self, kind=kind, size=x.shape[2:], mask=mask))
        y = x + h.transpose(1, 2).reshape(x.shape)
        return y if self.output_scale == 1 else y * self.output_scale


class PositionEmbedding(nn.Module):
    """Add a learned value to each channel and position: (B, C, size, size) -> (B, C, size, size).

    A convolution sees where it is only by the zeros beyond the border. The learned form is that of Dosovitskiy et al.
    2021, ViT, Section 3.1.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, channels, size, size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class Downsample(nn.Module):
    """Halve the resolution: (B, C, H, W) -> (B, C, H/2, W/2).

    conv: by a strided convolution; otherwise by the mean. padding: 1, or 0 for a zero at the right and the bottom alone
    (the TensorFlow convolution of Ho et al. 2020). dims: of three, the first is left as it is.
    """

    def __init__(self, channels: int, *, conv: bool = True, padding: int = 1, dims: int = 2) -> None:
        super().__init__()
        self.one_sided = conv and padding == 0
        self.stride = (1, 2, 2) if dims == 3 else (2,) * dims
        self.conv = conv_nd(dims, channels, channels, 3, stride=self.stride, padding=padding) if conv else None

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        if self.conv is None:
            pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(self.stride) - 1]
            return pool(x, self.stride, self.stride)
        return self.conv(F.pad(x, (0, 1) * (x.ndim - 2)) if self.one_sided else x)


class Upsample(nn.Module):
    """Double the resolution, nearest neighbour, then a convolution if `conv`: (B, C, H, W) -> (B, C, 2H, 2W).

    size: of the result, where halving a number that was odd must be undone. dims: of three, the first is left as it is.
    """

    def __init__(self, channels: int, *, conv: bool = True, dims: int = 2) -> None:
        super().__init__()
        self.conv = conv_nd(dims, channels, channels, 3, padding=1) if conv else None

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        if size is None:
            kept = x.ndim - 4 if x.ndim == 5 else 0
            size = torch.Size([*x.shape[2 : 2 + kept], *(2 * pixels for pixels in x.shape[2 + kept :])])
        x = F.interpolate(x, size, mode="nearest")
        return x if self.conv is None else self.conv(x)
