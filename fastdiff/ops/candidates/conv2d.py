"""Of convolutions: cuDNN's product with one kernel of ours for all that follows, or our kernel with all of it inside;
upsampling by four 2x2 convolutions; PyTorch's kernels in the layout that x has, and channels-last, which tensor cores
want."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops.candidates.shared import Found, beyond_pointwise, torch_candidate
from fastdiff.ops.conv2d_weights import summed
from fastdiff.ops.tensors import is_channels_last
from fastdiff.runtime.candidates import Candidate
from fastdiff.runtime.device import properties
from fastdiff.runtime.dispatcher import is_memory

_SUM, _PHASES, _OURS, _OUR_PHASES = "cudnn, sum by triton", "cudnn by phases", "triton", "triton by phases"
# Where our kernel is offered. On one H100 it was slower than cuDNN and one addition at 3x3 between these.
_FEW_PIXELS, _FEW_CHANNELS = 512, 128


def find(op: Any, a: Any) -> Found:
    """cuDNN's kernels in halves add no bias: PyTorch adds it, and all else that follows, in a pass over memory each.
    Channels-last is a candidate where x is not, and it is of a half type."""
    found = [torch_candidate(op)]
    absent: dict[str, str] = {}
    reason = beyond_pointwise(a.x)
    if _is_followed(a):
        if reason is not None:
            absent[_SUM] = reason
        else:
            found.insert(0, Candidate(_SUM, lambda a: _summed(op, a)))
    if a.x.element_size() == 2 and a.scale == 1 and a.x.numel() and reason is None:
        if _has_phases(a):
            ours, absent[_OUR_PHASES] = _ours(op, a, _OUR_PHASES)
            theirs = [Candidate(_PHASES, lambda a: _by_phases(op, a))]
            # Ours was measured on sm_90, cuDNN's nowhere.
            measured = properties(a.x.device).exact == "sm_90"
            found = [*ours, *theirs, *found] if measured else [*theirs, *ours, *found]
        elif a.upsample == 1 and is_channels_last(a.x):
            ours, absent[_OURS] = _ours(op, a, _OURS)
            # Concatenating takes as long as the product of a 1x1 convolution, or longer.
            found = [*ours, *found] if a.skip is not None and _taps(a) == 1 else [*found, *ours]
    absent = {name: reason for name, reason in absent.items() if reason}
    if a.x.element_size() == 2 and not is_channels_last(a.x):
        found.append(Candidate("torch channels-last", lambda a: op.plainly(_channels_last(a), True)))
    return Found(found, absent=absent)


def _is_followed(a: Any) -> bool:
    return a.scale == 1 and not (a.bias is a.channel_bias is a.residual is None and a.activation is None)


def _taps(a: Any) -> int:
    return int(a.weight.shape[2] * a.weight.shape[3])


def _ours(op: Any, a: Any, name: str) -> tuple[list[Candidate], str]:
    """Our kernel, with its own tile first; or why it is not there."""
    from fastdiff.kernels.conv2d import tiles
    from fastdiff.kernels.conv2d.forward import size_of, unsupported

    samples, outputs, height, width = a.result_shape
    parts = 4 if name == _OUR_PHASES else 1
    rows = samples * height * width // parts
    if (reason := unsupported(a.x, a.skip, a.weight, a.result_shape)) is not None:
        return [], reason
    if parts == 1:
        if _taps(a) > 1 and not is_channels_last(a.weight):
            return [], "the weight is not channels-last"
        if _taps(a) > 1 and rows > _FEW_PIXELS and outputs > _FEW_CHANNELS:
            return [], f"slower on one H100 with more than {_FEW_PIXELS} pixels and {_FEW_CHANNELS} channels"
    shape = a.weight.shape if parts == 1 else (4 * outputs, a.weight.shape[1], 2, 2)
    more = 0 if a.skip is None else a.skip.shape[1]
    found = tiles(size_of(a.x.element_size(), rows, shape, parts, more), properties(a.x.device))
    named = [name, *(f"{name} {tile.said}" for tile in found[1:])]
    return [Candidate(each, _by_triton(op, tile, parts == 4)) for each, tile in zip(named, found)], ""


def _by_triton(op: Any, tile: Any, phases: bool) -> Callable[[Any], Tensor]:
    def run(a: Any) -> Tensor:
        from fastdiff.kernels.conv2d import conv2d
        from fastdiff.kernels.pointwise import phases as make

        tensors = (a.x, a.skip, a.weight, a.bias, a.channel_bias, a.residual)
        if not all(t is None or is_memory(t) for t in tensors):
            return op.plainly(a, True)
        weight = summed(a.weight, make) if phases else a.weight
        return conv2d(
            a.x, weight, a.bias, skip=a.skip, stride=a.stride, padding=a.padding, channel_bias=a.channel_bias,
            residual=a.residual, activation=a.activation, phases=phases, tile=tile,
        )  # fmt: skip

    return run


def _has_phases(a: Any) -> bool:
    """Whether an upsampled image can be convolved by four 2x2 kernels, without being made: 16 products of a pixel of x
    instead of 36. The kernels are sums of weights, kept with the weight. With the rounding of the sums the error in
    halves is 1.15 to 1.22 times PyTorch's, which rounds once more for the bias; without a bias it would be 1.41 times.
    """
    size = (a.upsample, a.stride, a.padding, *a.weight.shape[2:])
    dense = a.weight.is_contiguous() or is_channels_last(a.weight)
    return size == (2, 1, 1, 3, 3) and a.bias is not None and a.skip is None and a.x.element_size() == 2 and dense


def _summed(op: Any, a: Any) -> Tensor:
    x = a.x if a.skip is None else torch.cat((a.x, a.skip), 1)
    x = x if a.upsample == 1 else F.interpolate(x, scale_factor=float(a.upsample), mode="nearest")
    return _add(op, F.conv2d(x, a.weight, None, a.stride, a.padding), a, a.bias)


def _by_phases(op: Any, a: Any) -> Tensor:
    from fastdiff.kernels.pointwise import interleave, phases

    if not (is_memory(a.x) and is_memory(a.weight) and is_memory(a.bias)):
        return op.plainly(a, True)
    x = a.x.contiguous(memory_format=torch.channels_last)
    y = F.conv2d(x, summed(a.weight, phases), padding=1).contiguous(memory_format=torch.channels_last)
    return _add(op, interleave(y, a.bias), a, None)


def _add(op: Any, y: Tensor, a: Any, bias: Tensor | None) -> Tensor:
    """What follows the product, over y."""
    from fastdiff.kernels.pointwise import add_bias

    if bias is a.channel_bias is a.residual is None and a.activation is None:
        return y
    tensors = (y, bias, a.channel_bias, a.residual)
    if (y.is_contiguous() or is_channels_last(y)) and all(t is None or is_memory(t) for t in tensors):
        return add_bias(*tensors, a.activation)
    return op.follow(y if bias is None else y.add_(bias[:, None, None]), a, inplace=True)


def _channels_last(a: Any) -> Any:
    def last(image: Tensor | None) -> Tensor | None:
        return None if image is None else image.contiguous(memory_format=torch.channels_last)

    return a._replace(x=last(a.x), skip=last(a.skip), weight=last(a.weight), residual=last(a.residual))
